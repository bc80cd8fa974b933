"""Options as they are given in Python, as sections of a config."""

import dataclasses
import operator
from typing import Any

import numpy as np

from diffussm_jax.config import Config, from_dict
from diffussm_jax.config.parsing import ConfigError

# Options of an edit that are fields of its section; the others are of the sample section.
EDIT_OPTIONS = {
    "num",
    "strength",
    "rectangle",
    "jump_length",
    "resamplings",
    "iterations",
    "target",
}


def with_sample(config: Config, classes: Any, options: dict[str, Any]) -> Config:
    """The config with these fields of the sample section, and one image of each class given.

    Raises:
        ConfigError: `classes` are no integers, or an option is unknown or does not fit.
    """
    options = _plain(options)
    if classes is not None:
        options = _in_turn(classes, options)
    values = dataclasses.asdict(config)
    values["sample"] |= options
    return from_dict(values)


def with_edit(config: Config, kind: str, classes: Any, options: dict[str, Any]) -> Config:
    """The config with an edit section of this kind, and with these fields of it and of `sample`.

    Raises:
        ConfigError: `classes` are no integers, or an option is unknown or does not fit.
    """
    values = dataclasses.asdict(config)
    values["edit"] = {"kind": kind}
    if classes is not None:
        in_turn = _in_turn(classes, {})
        values["edit"] |= {name: in_turn[name] for name in ("labels", "classes")}
    for name, x in _plain(options).items():
        values["edit" if name in EDIT_OPTIONS else "sample"][name] = x
    return from_dict(values)


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """Options with NumPy's numbers, which are numbers too, as Python's."""
    return {k: x.item() if isinstance(x, np.generic) else x for k, x in options.items()}


def _in_turn(classes: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Options that draw one image of each class; they may not ask for something else."""
    try:
        # The config refuses bools.
        in_turn = tuple(y if isinstance(y, bool) else operator.index(y) for y in classes)
    except TypeError:
        in_turn = ()
    if not in_turn:
        demand = "classes must be a sequence of integers, one for each image"
        raise ConfigError(f"{demand}, got {classes!r}")
    given = {"labels": "list", "classes": in_turn, "num": len(in_turn)}
    for name, value in options.items():
        if given.get(name, value) != value:
            raise ConfigError(f"{name} = {value!r} contradicts the {len(in_turn)} classes given")
    return options | given
