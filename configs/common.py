"""The defaults, which are the paper's, as a ConfigDict; the other files here override them."""

import dataclasses
import types
import typing
from typing import Any

import ml_collections
from ml_collections import config_dict

from diffussm_jax.config import Config


def get_config() -> ml_collections.ConfigDict:
    return _to_config_dict(Config())


def _to_config_dict(section: Any) -> ml_collections.ConfigDict:
    """A section as a ConfigDict, in which None is a placeholder, so that flags know its type."""
    config = ml_collections.ConfigDict()
    for name, hint in typing.get_type_hints(type(section)).items():
        value = getattr(section, name)
        if dataclasses.is_dataclass(value):
            value = _to_config_dict(value)
        elif value is None:
            value = config_dict.placeholder(_placeholder_type(hint))
        config[name] = value
    return config


def _placeholder_type(hint: Any) -> type:
    """The type of X in the hint `X | None`: str for a Literal, tuple for tuple[int, ...]."""
    option = next(o for o in typing.get_args(hint) if o is not types.NoneType)
    origin = typing.get_origin(option)
    return str if origin is typing.Literal else origin or option
