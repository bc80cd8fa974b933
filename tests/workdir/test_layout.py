"""For every field of the config: a run goes on with another value, or refuses it by name."""

import dataclasses
import json
import typing

import pytest

from diffussm_jax.config import Config, from_dict, to_json
from diffussm_jax.config.parsing import ConfigError, build, field_names, get_field
from diffussm_jax.errors import UserError
from diffussm_jax.workdir import layout

FIELDS = field_names(Config)
# One of each kind; the test below goes through them all.
GOES_ON = ["checkpoint.every", "training.log_every", "sample.steps", "mesh.fsdp"]
IS_REFUSED = ["seed", "optimizer.learning_rate", "data.split", "training.batch_size"]


@pytest.fixture
def run(tmp_path):
    """A work directory with a run that has saved something."""
    layout.begin(tmp_path, Config())
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    return tmp_path


def changed(field):
    """The default config with another value of a field, of its type; rules may forbid it."""
    *sections, name = field.split(".")
    section = getattr(Config(), sections[0]) if sections else Config()
    value = getattr(section, name)
    for other in candidates(value, typing.get_type_hints(type(section))[name]):
        values = {sections[0]: {name: other}} if sections else {name: other}
        if other == value:
            continue
        try:
            return build(Config, values)
        except ConfigError:
            continue
    raise AssertionError(f"no other value of {field} was thought of")


def candidates(value, hint):
    """Values of any type."""
    for option in (hint, *typing.get_args(hint)):
        if typing.get_origin(option) is typing.Literal:
            yield from (choice for choice in typing.get_args(option) if choice != value)
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, (int, float)):
        yield from (value * 2, value + 1, value / 2, 3, 2, 1)
    elif isinstance(value, tuple):
        yield value[:1]
        yield tuple(x / 2 for x in value if isinstance(x, float))
    yield from ("other", 7, 0.5, (3, 1), (0, 0, 1, 1), ("v5e:4x4",), ("s4d",), ("8x8",))


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_goes_on_or_is_refused_by_name(run, field):
    config = changed(field)
    assert get_field(config, field) != get_field(Config(), field)
    if layout.may_differ(field):
        layout.begin(run, config)
        assert (run / "config.json").read_text() == to_json(config)
    else:
        with pytest.raises(UserError, match=f"holds a run with {field} = ") as error:
            layout.begin(run, config)
        assert "\n" not in str(error.value)
        assert layout.read_config(run) == Config()


def test_the_table_is_as_the_issue_says():
    assert all(map(layout.may_differ, GOES_ON))
    assert not any(map(layout.may_differ, IS_REFUSED))
    sections = {field.name for field in dataclasses.fields(Config)}
    assert layout.MAY_DIFFER <= {*FIELDS, *sections}


def test_a_run_that_saved_nothing_begins_anew(tmp_path):
    layout.begin(tmp_path, Config())
    (tmp_path / "checkpoints").mkdir()
    config = changed("optimizer.learning_rate")
    layout.begin(tmp_path, config)
    assert layout.read_config(tmp_path) == config


def test_a_folder_of_images_may_lie_elsewhere(run):
    here, there, other = (
        from_dict({"data": {"name": f"folder:{path}"}})
        for path in ("/a/photos", "/b/photos", "/b/scans")
    )
    (run / "config.json").write_text(to_json(here))
    layout.begin(run, there)
    with pytest.raises(UserError, match="data.name = 'folder:/b/photos'"):
        layout.begin(run, other)


def test_a_field_that_is_new_since_the_run_began_has_its_default(run):
    saved = json.loads(to_json(Config()))
    del saved["training"]["ema_decay"]
    (run / "config.json").write_text(json.dumps(saved))
    layout.begin(run, Config())


WSD = {"schedule": "warmup_stable_decay", "decay_steps": 20}


@pytest.mark.parametrize(
    ("optimizer", "step", "num_steps", "goes_on"),
    [
        (WSD, 80, 200, True),
        (WSD, 81, 200, False),
        (WSD, 60, 80, True),
        (WSD, 61, 80, False),  # the shorter run would have begun its decay at 60
        (WSD, 90, 100, True),
        ({"schedule": "cosine", "warmup_steps": 5}, 5, 200, True),
        ({"schedule": "cosine", "warmup_steps": 5}, 6, 200, False),
        ({"warmup_steps": 5}, 90, 200, True),
    ],
)
def test_the_length_of_a_run_changes_until_its_decay_begins(
    tmp_path, optimizer, step, num_steps, goes_on
):
    first, longer = (
        from_dict({"optimizer": optimizer, "training": {"num_steps": n}}) for n in (100, num_steps)
    )
    layout.begin(tmp_path, first)
    (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    if goes_on:
        layout.begin(tmp_path, longer)
        return
    with pytest.raises(UserError, match=r"training.num_steps = 100, .* after step ") as error:
        layout.begin(tmp_path, longer)
    assert "\n" not in str(error.value)
