"""Nested mappings to frozen dataclasses, with every mistake named in one line."""

import dataclasses
import difflib
import functools
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from diffussm_jax.errors import UserError

T = TypeVar("T")


class ConfigError(UserError):
    """A field that does not exist, has the wrong type, or contradicts another."""


def build(cls: Any, values: Any) -> Any:
    """An instance of a dataclass of dataclasses; missing fields take their default.

    Lists (of JSON) become tuples, and integers floats where the field is one.

    Raises:
        ConfigError: in one line that names the field, the value and the mend.
    """
    return _build(cls, values, "config", root=cls)


def from_json(cls: type[T], text: str) -> T:
    """Parse a JSON object into a dataclass. Its other keys are ignored; `a.b` is the field `a_b`.

    Raises:
        ConfigError: it is not such JSON, or a field is missing or of another type.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:  # a RecursionError: too many brackets
        raise ConfigError(str(error)) from error
    if not isinstance(values, dict):
        raise ConfigError("it is not a JSON object")
    names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    fields = {name.replace(".", "_"): value for name, value in values.items()}
    known = {name: value for name, value in fields.items() if name in names}
    return _build(cls, known, "", root=cls)


def read_as(path: Path, cls: type[T], *, mend: str | None = None) -> T:
    """Read a JSON file into a dataclass, as `from_json` does.

    Args:
        mend: what to do about a damaged file, for the end of the message.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such file.
        UserError: it cannot be read or does not fit.
    """
    try:
        return from_json(cls, path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError) as error:  # a ValueError: a ConfigError, or no text at all
        raise UserError("; ".join(filter(None, [f"{path} is damaged: {error}", mend]))) from error


def check_field(root: Any, path: str) -> None:
    """Raise ConfigError unless the dotted `path` names a field or a section of `root`."""
    cls, done = root, ""
    for name in path.split("."):
        fields = typing.get_type_hints(cls) if dataclasses.is_dataclass(cls) else {}
        if name not in fields:
            raise _unknown_field(root, done + name)
        cls, done = fields[name], f"{done}{name}."


def field_names(cls: Any, prefix: str = "") -> list[str]:
    """Dotted names of all fields that are not sections."""
    names = []
    for name, hint in typing.get_type_hints(cls).items():
        nested = field_names(hint, f"{prefix}{name}.") if dataclasses.is_dataclass(hint) else []
        names += nested or [f"{prefix}{name}"]
    return names


def get_field(config: Any, path: str) -> Any:
    """The value of the dotted `path` in nested dataclasses."""
    return functools.reduce(getattr, path.split("."), config)


def _unknown_field(root: Any, path: str) -> ConfigError:
    names = field_names(root)
    same_name = [name for name in names if name.split(".")[-1] == path.split(".")[-1]]
    closest = same_name or difflib.get_close_matches(path, names, n=1, cutoff=0.0)
    return ConfigError(f"config has no field {path!r}; did you mean {closest[0]!r}?")


def _build(cls: Any, values: Any, path: str, *, root: Any) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} is a section of fields, got {values!r}")
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in hints:
            raise _unknown_field(root, _join(path, name).removeprefix("config."))
    for field in dataclasses.fields(cls):
        if field.name not in values and _is_required(field):
            raise ConfigError(f"{_join(path, field.name)} is missing")
    return cls(
        **{
            name: _convert(hints[name], value, _join(path, name), root=root)
            for name, value in values.items()
        }
    )


def _join(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, path: str, *, root: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, path, root=root)
    for option in _options(hint):
        matches, converted = _match(option, value)
        if matches:
            return converted
    raise ConfigError(f"{path} must be {_describe(hint)}, got {value!r}")


def _options(hint: Any) -> tuple[Any, ...]:
    """The alternatives of `X | None`; `Literal[...] | None` is a typing.Union, `int | None` is not."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _match(hint: Any, value: Any) -> tuple[bool, Any]:
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint) and isinstance(value, str), value
    if typing.get_origin(hint) is tuple:
        return _match_tuple(typing.get_args(hint), value)
    if typing.get_origin(hint) in (list, dict):
        return _match_container(hint, value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return True, float(value)
    if isinstance(value, bool) and hint is not bool:
        return False, value
    return isinstance(value, hint), value


def _match_tuple(items: tuple[Any, ...], value: Any) -> tuple[bool, Any]:
    if not isinstance(value, (tuple, list)):
        return False, value
    if len(value) == 1 and isinstance(value[0], str):
        value = [x for x in value[0].split(",") if x]  # how flags give a,b
    if items[-1] is Ellipsis:
        items = items[:1] * len(value)
    matches = [_match(hint, item) for hint, item in zip(items, value)]
    return len(items) == len(value) and all(m for m, _ in matches), tuple(v for _, v in matches)


def _match_container(hint: Any, value: Any) -> tuple[bool, Any]:
    """`list[X]` and `dict[str, X]`, of JSON alone: one string stays one, whatever commas it has."""
    kind, item = typing.get_origin(hint), typing.get_args(hint)[-1]
    if not isinstance(value, kind):
        return False, value
    pairs = value.items() if kind is dict else enumerate(value)
    matches = {key: _match(item, x) for key, x in pairs}
    converted = {key: x for key, (_, x) in matches.items()}
    is_match = all(fits for fits, _ in matches.values())
    return is_match, converted if kind is dict else list(converted.values())


def _describe(hint: Any) -> str:
    if len(options := _options(hint)) > 1:
        return " or ".join(_describe(option) for option in options)
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return "a tuple, each item " + _describe(typing.get_args(hint)[0])
    if (kind := typing.get_origin(hint)) in (list, dict):
        return f"a {kind.__name__}, each value {_describe(typing.get_args(hint)[-1])}"
    return "None" if hint is types.NoneType else getattr(hint, "__name__", str(hint))
