"""Nested mappings and JSON files to frozen dataclasses, with every mistake named in one line."""

import contextlib
import dataclasses
import difflib
import functools
import json
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from diffussm_jax.config.paths import FilePath, expand
from diffussm_jax.errors import UserError

T = TypeVar("T")


class ConfigError(UserError):
    """A field that does not exist, has the wrong type, or contradicts another."""


def build(cls: type[T], values: Any) -> T:
    """Build a config, a dataclass of dataclasses; missing fields take their default.

    Lists (of JSON) become tuples, and integers become floats where the field is one.

    Raises:
        ConfigError: in one line that names the field, the value and the mend.
    """
    return _build(cls, values, "config", root=cls)


def read_as(path: Path, cls: type[T], *, mend: str | None = None) -> T:
    """Read a JSON file into a dataclass, or into a `dict` as it is; see `from_object`.

    Args:
        mend: what to do about a damaged file; the message ends with it.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such file.
        UserError: it cannot be read, is not JSON, or does not fit.
    """
    try:
        return from_json(cls, path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError) as error:  # a ValueError: a ConfigError, or no text at all
        ending = f"; {mend}" if mend else ""
        raise UserError(f"{path} is damaged: {error}{ending}") from error


def from_json(cls: type[T], text: str) -> T:
    """Parse the text of a JSON object into a dataclass; see `from_object`.

    Raises:
        ConfigError: it is not such JSON, or does not fit.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:  # a RecursionError: too many brackets
        raise ConfigError(str(error)) from error
    return from_object(cls, values)


def from_object(cls: type[T], values: Any) -> T:
    """Build a dataclass of a parsed JSON object; its fields may be dataclasses and lists of them.

    Keys that are no fields are ignored, because a newer version may write more. The key `a.b` is
    the field `a_b`. A field that has no default must be given.

    Raises:
        ConfigError: in one line that names the field and the value.
    """
    if cls is dict and isinstance(values, dict):
        return cast(T, values)
    return _build(cls, values, "", root=None)


def require(is_met: bool, field: str, demand: str, *values: object) -> None:
    """Raise ConfigError that says what a field must do, and which values it got, unless it does."""
    if not is_met:
        got = ", got " + " and ".join(map(repr, values)) if values else ""
        raise ConfigError(f"config.{field} must {demand}{got}")


def find_type(root: Any, path: str) -> Any:
    """The type of the field of `root` at the dotted `path`.

    Raises:
        ConfigError: there is no such field, or it is a section.
    """
    cls = root
    for name in path.split("."):
        fields = _hints(cls) if dataclasses.is_dataclass(cls) else {}
        if name not in fields:
            raise _unknown_field(root, path)
        cls = fields[name]
    if dataclasses.is_dataclass(cls):
        raise ConfigError(f"config.{path} is a section: give its fields, as config.{path}.NAME")
    return cls


def with_option(config: T, path: str, given: str | bool) -> T:
    """A copy of a config in which one field has the value of an option of the command line.

    Args:
        given: a text, or whether a switch is on. Items of a tuple are separated by commas, with or
            without brackets around them. `None` is None where a field may be that.

    Raises:
        ConfigError: in one line that names the field and the value.
    """
    hint = find_type(type(config), path)
    value = _read(hint, given) if isinstance(given, str) else given
    return _with_field(config, path, _convert(hint, value, f"config.{path}", root=type(config)))


def with_fields(config: T, values: Mapping[str, Any]) -> T:
    """A copy of a config in which the fields at these dotted paths have other values."""
    for path, value in values.items():
        config = _with_field(config, path, value)
    return config


def field_names(cls: Any, prefix: str = "") -> list[str]:
    """Dotted names of all fields that are not sections."""
    names = []
    for name, hint in _hints(cls).items():
        path = _join(prefix, name)
        nested = field_names(hint, path) if dataclasses.is_dataclass(hint) else []
        names += nested or [path]
    return names


def get_field(config: Any, path: str) -> Any:
    """The value of the dotted `path` in nested dataclasses."""
    return functools.reduce(getattr, path.split("."), config)


def _with_field(config: Any, path: str, value: Any) -> Any:
    name, _, below = path.partition(".")
    new = _with_field(getattr(config, name), below, value) if below else value
    return dataclasses.replace(config, **{name: new})


def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)  # FilePath is annotated


def _unknown_field(root: Any, path: str) -> ConfigError:
    names = field_names(root)
    same_name = [name for name in names if name.split(".")[-1] == path.split(".")[-1]]
    sections = [name for name in _hints(root) if name not in names]
    closest = difflib.get_close_matches(path, same_name or names + sections, n=1, cutoff=0.0)
    return ConfigError(f"config has no field {path!r}; did you mean {closest[0]!r}?")


def _join(parent: str, name: object) -> str:
    return f"{parent}.{name}" if parent else str(name)


def _build(cls: Any, values: Any, path: str, *, root: Any) -> Any:
    """Build a dataclass; names that are no fields are mistakes in a config, and ignored in a file.

    `root` is the config whose fields a mistake may have meant, None for a file.
    """
    if not isinstance(values, Mapping):
        if root is None:
            raise ConfigError(f"{path or 'it'} is not a JSON object")
        raise ConfigError(f"{path} is a section of fields, got {values!r}")
    hints = _hints(cls)
    if root is None:
        fields = {name.replace(".", "_"): value for name, value in values.items()}
        values = {name: value for name, value in fields.items() if name in hints}
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


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, path: str, *, root: Any) -> Any:
    """Convert a value to its type; `list` and `dict` are JSON's and are converted item by item."""
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, path, root=root)
    for option in _options(hint):
        if dataclasses.is_dataclass(option) and isinstance(value, Mapping):
            return _build(option, value, path, root=root)
        kind, items = typing.get_origin(option), typing.get_args(option)
        if kind is list and isinstance(value, list):
            return [_convert(items[0], x, f"{path}[{i}]", root=root) for i, x in enumerate(value)]
        if kind is tuple and isinstance(value, list) and dataclasses.is_dataclass(items[0]):
            return tuple(_convert(list[items[0]], value, path, root=root))
        if kind is dict and isinstance(value, dict):
            return {k: _convert(items[1], x, _join(path, k), root=root) for k, x in value.items()}
        matches, converted = _match(option, value)
        if matches:
            return _expand(converted, path) if option == FilePath else converted
    raise ConfigError(f"{path} must be {_describe(hint)}, got {value!r}")


def _expand(name: str, path: str) -> str:
    try:
        return expand(name)
    except UserError as error:
        raise ConfigError(f"{path}={name}: {error}") from error


def _read(hint: Any, text: str) -> Any:
    """The value that a text stands for by a field's type; the text itself where it fits none."""
    options = _options(hint)
    if text == "None" and types.NoneType in options:
        return None
    for option in options:
        if typing.get_origin(option) is tuple:
            items = re.sub(r"^[(\[](.*)[)\]]$", r"\1", text.strip()).split(",")
            return tuple(_read(typing.get_args(option)[0], x.strip(" '\"")) for x in items if x)
        if option in (int, float):
            with contextlib.suppress(ValueError):
                return option(text)
    return text


def _options(hint: Any) -> tuple[Any, ...]:
    """The alternatives of `X | None`; with a Literal as X it is a typing.Union, with `int` not."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _match(hint: Any, value: Any) -> tuple[bool, Any]:
    """Whether a value that is no list or dict fits a type, and the value converted to it."""
    hint = str if hint == FilePath else hint
    kind = typing.get_origin(hint)
    if hint is Any:
        return True, value
    if kind is Literal:
        return value in typing.get_args(hint) and isinstance(value, str), value
    if kind is tuple:
        return _match_tuple(typing.get_args(hint), value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return True, float(value)
    if isinstance(value, bool) and hint is not bool:
        return False, value
    return isinstance(value, kind or hint), value


def _match_tuple(items: tuple[Any, ...], value: Any) -> tuple[bool, Any]:
    if not isinstance(value, (tuple, list)):
        return False, value
    if items[-1] is Ellipsis:
        items = items[:1] * len(value)
    matches = [_match(hint, item) for hint, item in zip(items, value)]
    return len(items) == len(value) and all(m for m, _ in matches), tuple(v for _, v in matches)


def _describe(hint: Any) -> str:
    options, kind, items = _options(hint), typing.get_origin(hint), typing.get_args(hint)
    if len(options) > 1:
        return " or ".join(_describe(option) for option in options)
    if kind is Literal:
        return "one of " + ", ".join(repr(choice) for choice in items)
    if kind is tuple:
        num = "" if items[-1] is Ellipsis else f" of {len(items)}"
        return f"a tuple{num}, each item {_describe(items[0])}"
    if kind in (list, dict):
        return f"a {kind.__name__}, each value {_describe(items[-1])}"
    if hint == FilePath:
        return "a path"
    return "None" if hint is types.NoneType else getattr(hint, "__name__", str(hint))
