"""Every field of the config with values of other types, out of range, empty or not finite."""

import dataclasses
import typing

import pytest

from diffussm_jax.config import Config, from_dict
from diffussm_jax.config.parsing import field_names
from tests.fuzz.one_line import error_of

INF, NAN = float("inf"), float("nan")
# Wrong for a field of any type.
OF_NO_TYPE = [{}, {"x": 1}, object(), b"bytes", {1, 2}]
WRONG = {
    int: ["7", 2.5, True, (7,), -7, 2**31, NAN, INF],
    float: ["7", True, (0.5,), -7.0, NAN, INF, -INF],
    str: [7, True, ("x",), ""],
    bool: ["yes", 1, 0.0],
}


def hint_of(field):
    hint: typing.Any = Config
    for name in field.split("."):
        hint = typing.get_type_hints(hint)[name]
    return hint


def wrong_values(field):
    hint = hint_of(field)
    options = typing.get_args(hint) if type(None) in typing.get_args(hint) else (hint,)
    yield from OF_NO_TYPE
    if type(None) not in options:
        yield None
    for option in options:
        if typing.get_origin(option) is typing.Literal:
            yield from ("", "other", 7, True, ("x",))
        elif typing.get_origin(option) is tuple:
            item = typing.get_args(option)[0]
            yield from (7, "7", (1, 2, "x"), (None,))
            if field != "training.ema_lengths":
                yield ()
            yield from ((value, value) for value in WRONG.get(item, ["other"]))
        else:
            yield from WRONG.get(option, ())


MAY_BE = [
    ("sample.cfg_interval", (INF, INF)),
    ("guidance.max_noise", INF),
    ("diffusion.time_mean", -7.0),
]
CASES = [
    (field, value)
    for field in field_names(Config)
    for value in wrong_values(field)
    if (field, value) not in MAY_BE
]


def nested(field, value):
    for name in reversed(field.split(".")):
        value = {name: value}
    return value


@pytest.mark.parametrize("field", field_names(Config))
def test_wrong_values_are_refused_by_name(field):
    for name, value in CASES:
        if name == field:
            line = error_of(lambda value=value: from_dict(nested(field, value)))
            assert "config." in line, value
            assert field.split(".")[-1] in line or "config has no field" in line, value


def test_there_are_many():
    assert len(CASES) >= 300


SECTIONS = [f.name for f in dataclasses.fields(Config) if dataclasses.is_dataclass(f.type)]


@pytest.mark.parametrize("section", SECTIONS)
def test_sections_are_sections(section):
    for value in (None, 7, "x", [], True):
        assert section in error_of(lambda value=value: from_dict({section: value}))
    assert "no field" in error_of(lambda: from_dict({section: {"": 1}}))
    assert "no field" in error_of(lambda: from_dict({section: {7: 1}}))
