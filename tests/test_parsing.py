"""Fields of the config by their types: from Python, options, files and JSON."""

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import diffussm_jax
from configs import common
from diffussm_jax.config import Config, from_dict
from diffussm_jax.config.parsing import (
    ConfigError,
    build,
    field_names,
    find_type,
    get_field,
    read_as,
    with_option,
)
from diffussm_jax.config.paths import FilePath
from diffussm_jax.errors import UserError


def test_integers_are_floats_and_lists_tuples():
    config = from_dict({"optimizer": {"learning_rate": 1, "betas": [0.5, 0.9], "grad_clip": 2}})
    assert config.optimizer.betas == (0.5, 0.9)
    assert isinstance(config.optimizer.grad_clip, float)


def test_the_type_of_a_field_is_found_by_its_name():
    assert find_type(Config, "model.depth") is int
    with pytest.raises(ConfigError, match="did you mean 'training.num_steps'"):
        find_type(Config, "training.num_step")
    with pytest.raises(ConfigError, match="no field 'model.depth.x'"):
        find_type(Config, "model.depth.x")
    with pytest.raises(ConfigError, match="config.model is a section"):
        find_type(Config, "model")


def test_every_field_is_read_somewhere():
    """A field that nothing reads is a promise that is not kept."""
    package = Path(diffussm_jax.__file__).parent
    code = "\n".join(path.read_text() for path in package.rglob("*.py"))
    for section in dataclasses.fields(Config):
        if dataclasses.is_dataclass(section.type):
            for field in dataclasses.fields(section.type):
                assert f".{field.name}" in code, field.name


def hint_of(field):
    hint: Any = Config
    for name in field.split("."):
        hint = get_type_hints(hint)[name]
    return hint


# By type, a value other than the default and its text.
GIVEN = {
    int: (7, "7"),
    float: (0.125, "0.125"),
    str: ("x", "x"),
    "sample.cfg_interval": ((0.5, 2.0), "0.5,2"),
    "sample.classes": ((1, 2), "(1, 2)"),
    "distill.blocks": ((1, 2), "1,2"),
    "data.buckets": (("8x8", "4x16"), "8x8,4x16"),
    "plan.topologies": (("v5e:4x4", "v6e:4x4"), "v5e:4x4,v6e:4x4"),
    "plan.search_batch_sizes": ((256, 512), "256,512"),
    "model.ssm_implementation": ("fft", "fft"),
    "model.stack_implementation": ("xla", "xla"),
    "model.attention_implementation": ("flash", "flash"),
    "model.levels": ((2, 4, 2), "2,4,2"),
    "model.mixers": (("s4d", "attention"), "s4d,attention"),
    "sample.dtype": ("float32", "float32"),
    "sample.dt_rule": ("width", "width"),
    "sample.image_size": ((8, 16), "8,16"),
    "sample.wrap": ("xy", "xy"),
    "inspect.layers": ((0, 3), "0,3"),
    "evaluate.preset": ("fast", "fast"),
    "edit.rectangle": ((0, 2, 4, 4), "0,2,4,4"),
    "edit.classes": ((1, 2), "1,2"),
}
OPTIONAL = [name for name in field_names(Config) if type(None) in get_args(hint_of(name))]


@pytest.mark.parametrize("field", OPTIONAL)
def test_none_and_back_by_option_and_in_a_file(field):
    """Of every type, and whatever the file says."""
    value, text = GIVEN.get(field) or GIVEN[get_args(hint_of(field))[0]]
    config = with_option(Config(), field, text)
    assert get_field(config, field) == value
    assert get_field(with_option(config, field, "None"), field) is None
    values = common.get_config()
    section, _, name = field.rpartition(".")
    for new in (value, None, value):
        (values[section] if section else values)[name] = new
        assert get_field(build(Config, values.to_dict()), field) == new


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("png,npz", ("png", "npz")),
        ("('png', 'npz')", ("png", "npz")),
        ('["png"]', ("png",)),
        ("png", ("png",)),
        ("(png,)", ("png",)),
        ("", ()),
        ("()", ()),
    ],
)
def test_options_give_tuples_with_commas(text, items):
    assert with_option(Config(), "sample.outputs", text).sample.outputs == items


def test_wrong_items_are_named():
    with pytest.raises(
        ConfigError, match="sample.outputs .* each item one of 'grid', 'npz', 'png'"
    ):
        with_option(Config(), "sample.outputs", "npx")


PATHS = [name for name in field_names(Config) if FilePath in get_args(find_type(Config, name))]
PATHS += ["data.name", "autoencoder.name"]


@pytest.mark.parametrize("field", PATHS)
def test_paths_are_written_as_in_a_shell(field, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "gs://bucket")
    for text, path in {
        "~/x": "/home/me/x",
        "$HOME/x": "/home/me/x",
        "${DATA}/x": "gs://bucket/x",
        "folder:~/x": "folder:/home/me/x",
        "a/~x": "a/~x",
        "org/name": "org/name",
    }.items():
        config = with_option(Config(), field, text)
        assert get_field(config, field) == path
        assert build(Config, dataclasses.asdict(config)) == config
    for text, what in (("~nosuchuser/x", "user ~nosuchuser"), ("$NONE/x", r"variable \$NONE")):
        with pytest.raises(ConfigError, match=f"config.{field}=.*: there is no .*{what}"):
            with_option(Config(), field, text)


def test_there_are_paths_in_all_these_sections():
    assert {name.split(".")[0] for name in PATHS} == {
        "compilation_cache_dir",
        "data",
        "autoencoder",
        "training",
        "sample",
        "evaluate",
        "export",
        "edit",
    }


@dataclasses.dataclass(frozen=True)
class Part:
    name: str
    size: int


@dataclasses.dataclass(frozen=True)
class Facts:
    step: int
    names: list[str] | None = None
    part_sha256: str = ""
    files: dict[str, tuple[int, str]] = dataclasses.field(default_factory=dict)
    parts: list[Part] = dataclasses.field(default_factory=list)
    options: dict[str, Any] | None = None


def test_json_files_are_read_as_dataclasses(tmp_path):
    path = tmp_path / "facts.json"
    path.write_text('{"step": 1, "other": 2, "names": ["a,b"], "part.sha256": "x"}')
    assert read_as(path, Facts) == Facts(1, ["a,b"], "x")
    path.write_text('{"step": 1, "files": {"a": [7, "x"]}}')
    assert read_as(path, Facts) == Facts(1, files={"a": (7, "x")})
    path.write_text('{"step": 1, "parts": [{"name": "x", "size": 3, "other": 2}]}')
    assert read_as(path, Facts) == Facts(1, parts=[Part("x", 3)])
    values = {"step": 1, "options": {"a": [None, 1.5], "b.c": {}}}
    path.write_text(json.dumps(values))
    assert read_as(path, Facts) == Facts(1, options=values["options"])
    assert read_as(path, dict) == values
    with pytest.raises(FileNotFoundError):
        read_as(tmp_path / "none.json", Facts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting property name"),
        ("[]", "it is not a JSON object"),
        ("{}", "step is missing"),
        ('{"step": true}', "step must be int, got True"),
        ('{"step": 1, "names": "a"}', "names must be a list, each value str or None, got 'a'"),
        ('{"step": 1, "names": ["a", 2]}', r"names\[1\] must be str, got 2"),
        ('{"step": 1, "files": []}', "files must be a dict, each value a tuple"),
        ('{"step": 1, "files": {"a": [7]}}', r"files.a must be a tuple of 2, .* got \[7\]"),
        ('{"step": 1, "parts": [3]}', r"parts\[0\] is not a JSON object"),
        ('{"step": 1, "parts": [{"name": "x"}]}', r"parts\[0\].size is missing"),
    ],
)
def test_damaged_json_files_are_named_in_one_line(text, message, tmp_path):
    path = tmp_path / "facts.json"
    path.write_text(text)
    with pytest.raises(UserError, match=f"facts.json is damaged: {message}.*; remove it$") as error:
        read_as(path, Facts, mend="remove it")
    assert "\n" not in str(error.value)
