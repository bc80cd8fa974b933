"""Nested mappings to frozen dataclasses, with every mistake named in one line."""

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from diffussm_jax.errors import UserError


class ConfigError(UserError):
    """A field that does not exist, has the wrong type, or contradicts another."""


def build(cls: Any, values: Any) -> Any:
    """An instance of a dataclass of dataclasses; missing fields take their default.

    Lists (of JSON) become tuples, and integers floats where the field is one.

    Raises:
        ConfigError: in one line that names the field, the value and the mend.
    """
    return _build(cls, values, "", root=cls)


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


def _build(cls: Any, values: Any, path: str, *, root: Any):
    if not isinstance(values, Mapping):
        name = f"config.{path}".rstrip(".")
        raise ConfigError(f"{name} is a section of fields, got {values!r}")
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in hints:
            raise _unknown_field(root, f"{path}{name}")
    return cls(
        **{
            name: _convert(hints[name], value, f"{path}{name}", root=root)
            for name, value in values.items()
        }
    )


def _convert(hint: Any, value: Any, path: str, *, root: Any):
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, f"{path}.", root=root)
    for option in _options(hint):
        matches, converted = _match(option, value)
        if matches:
            return converted
    raise ConfigError(f"config.{path} must be {_describe(hint)}, got {value!r}")


def _options(hint: Any) -> tuple[Any, ...]:
    """The alternatives of `X | None`; `Literal[...] | None` is a typing.Union, `int | None` is not."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _match(hint: Any, value: Any) -> tuple[bool, Any]:
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint) and isinstance(value, str), value
    if typing.get_origin(hint) is tuple:
        return _match_tuple(typing.get_args(hint), value)
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


def _describe(hint: Any) -> str:
    if len(options := _options(hint)) > 1:
        return " or ".join(_describe(option) for option in options)
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return "a tuple, each item " + _describe(typing.get_args(hint)[0])
    return "None" if hint is types.NoneType else getattr(hint, "__name__", str(hint))
