"""The paper's defaults as a ConfigDict; every other file here overrides what differs."""

import dataclasses
import types
import typing

import ml_collections
from ml_collections import config_dict

from diffussm_jax.config import Config


def get_config() -> ml_collections.ConfigDict:
    return _to_config_dict(Config())


def _to_config_dict(section) -> ml_collections.ConfigDict:
    """Fields whose default is None become placeholders, so that flags know their type."""
    config = ml_collections.ConfigDict()
    for name, hint in typing.get_type_hints(type(section)).items():
        value = getattr(section, name)
        if dataclasses.is_dataclass(value):
            value = _to_config_dict(value)
        elif value is None:
            value = config_dict.placeholder(_placeholder_type(hint))
        config[name] = value
    return config


def _placeholder_type(hint) -> type:
    """The type of X in `X | None`: a literal's is str, tuple[int, ...]'s is tuple."""
    option = next(o for o in typing.get_args(hint) if o is not types.NoneType)
    origin = typing.get_origin(option)
    return str if origin is typing.Literal else origin or option
