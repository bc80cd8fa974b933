"""Damaged work directories, exports and dumps: refused in one line, with nothing written."""

import json

import numpy as np
import pytest
import safetensors.numpy

import diffussm_jax
from diffussm_jax import train as train_lib
from diffussm_jax.config import from_dict
from diffussm_jax.export import export
from diffussm_jax.files import sha256_of
from diffussm_jax.replay import replay
from diffussm_jax.sample import sample
from diffussm_jax.workdir.data_facts import read_data_facts
from diffussm_jax.workdir.exports import CHECKED_FILES
from diffussm_jax.workdir.weights import load_export
from tests.conftest import merge
from tests.fuzz.one_line import JSON_DAMAGE, SAFETENSORS, error_of, files_of


@pytest.mark.parametrize("damage", JSON_DAMAGE)
def test_the_config_of_a_run(trained, tiny_config, damage):
    (trained / "config.json").write_bytes(JSON_DAMAGE[damage])
    before = files_of(trained)
    config = from_dict(tiny_config)
    for use in (
        lambda: diffussm_jax.load(trained),
        lambda: sample(config, trained),
        lambda: export(config, trained),
        lambda: train_lib.train(config, trained),
    ):
        assert "config.json" in error_of(use)
    assert files_of(trained) == before


def test_a_config_of_the_defaults_is_another_run(trained, tiny_config):
    (trained / "config.json").write_bytes(b"{}")
    assert "holds a run with" in error_of(lambda: train_lib.train(from_dict(tiny_config), trained))


# JSON objects are facts, whatever they are of.
NO_OBJECTS = set(JSON_DAMAGE) - {"unknown", "nan", "huge", "section"}


@pytest.mark.parametrize(
    "facts",
    [
        *(JSON_DAMAGE[name] for name in sorted(NO_OBJECTS)),
        b'{"class_names": 3}',
        b'{"class_names": [1, 2]}',
        b'{"class_names": {"a": 1}}',
        b'{"class_names": ["a", null]}',
        b'{"autoencoder.sha256": 3}',
        b'{"source": 3}',
        b'{"fingerprint": 3}',
        b'{"fingerprint": {"data_set": "x"}}',
    ],
)
def test_the_data_facts_of_a_run(trained, facts):
    (trained / "data.json").write_bytes(facts)
    assert "data.json" in error_of(lambda: read_data_facts(trained))


@pytest.mark.parametrize(
    "summary",
    [
        *JSON_DAMAGE.values(),
        b'{"format": 1}',
        b'{"format": 1, "step": 6, "sha256": []}',
        b'{"format": 1, "step": 6, "sha256": {}}',
        b'{"format": 1, "step": 6, "sha256": {"../config.json": "0"}}',
    ],
)
def test_the_summary_of_an_export(exported, summary):
    (exported / "export.json").write_bytes(summary)
    assert "export.json" in error_of(lambda: load_export(exported))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("format", value) for value in (0, 2, "1", None, [], {})),
        *(("step", value) for value in (-1, "6", None, True, 1.5, [6], {})),
        *(
            ("sha256", {name: value for name in CHECKED_FILES})
            for value in ("", "0" * 64, None, 7, [])
        ),
    ],
)
def test_fields_of_the_summary(exported, field, value):
    summary = json.loads((exported / "export.json").read_text())
    (exported / "export.json").write_bytes(json.dumps(summary | {field: value}).encode())
    error_of(lambda: load_export(exported))


@pytest.mark.parametrize("name", SAFETENSORS)
def test_the_weights_of_an_export(exported, name):
    """With checksums that agree, so that only the reader stands between them and the run."""
    (exported / "model.safetensors").write_bytes(SAFETENSORS[name])
    note_checksums(exported)
    assert "model.safetensors" in error_of(lambda: load_export(exported))


@pytest.mark.parametrize("kind", ["dtype", "shape", "missing", "extra", "transposed"])
def test_arrays_of_an_export(exported, kind):
    path = exported / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    names = sorted(tensors)
    for name in (names[0], names[-1], names[len(names) // 2]):
        changed, x = dict(tensors), tensors[name]
        if kind == "missing":
            del changed[name]
        else:
            target = name + "2" if kind == "extra" else name
            changed[target] = {
                "dtype": x.astype(np.float64),
                "shape": x[..., None],
                "extra": x,
                "transposed": np.ascontiguousarray(np.concatenate([x, x]).T),
            }[kind]
        path.write_bytes(safetensors.numpy.save(changed))
        note_checksums(exported)
        assert name in error_of(lambda: load_export(exported))


def note_checksums(folder):
    summary = json.loads((folder / "export.json").read_text())
    summary["sha256"] = {name: sha256_of(folder / name) for name in CHECKED_FILES}
    (folder / "export.json").write_bytes(json.dumps(summary).encode())


@pytest.mark.parametrize("config", JSON_DAMAGE.values(), ids=JSON_DAMAGE)
def test_the_config_of_an_export(exported, config):
    (exported / "config.json").write_bytes(config)
    note_checksums(exported)
    assert "config.json" in error_of(lambda: diffussm_jax.load(exported))


@pytest.mark.parametrize(
    "facts",
    [
        *JSON_DAMAGE.values(),
        b'{"step": 1, "error": "", "config": []}',
        b'{"step": "x", "error": "", "config": {}}',
        b'{"step": -1, "error": "", "config": {}}',
        b'{"step": 1, "error": "", "config": {"../x": 1}}',
    ],
)
def test_a_dump(tiny_config, tmp_path, facts):
    folder = tmp_path / "faults" / "step_0000001"
    folder.mkdir(parents=True)
    (folder / "dump.json").write_bytes(facts)
    np.savez(folder / "batch.npz", indices=np.arange(2), image=np.zeros(2))
    before = files_of(tmp_path)
    error_of(lambda: replay(from_dict(tiny_config), tmp_path))
    assert files_of(tmp_path) == before


def test_a_dump_with_objects_is_not_unpickled(tiny_config, tmp_path):
    folder = tmp_path / "faults" / "step_0000001"
    folder.mkdir(parents=True)
    facts = {"step": 1, "error": "", "config": {}}
    (folder / "dump.json").write_text(json.dumps(facts))
    np.savez(folder / "batch.npz", indices=np.array([object()], object))
    line = error_of(lambda: replay(from_dict(tiny_config), tmp_path))
    assert "is damaged (ValueError" in line


@pytest.mark.parametrize("what", ["nothing", "file", "empty", "link", "loop", "nul"])
def test_paths_that_are_no_run(tiny_config, tmp_path, what):
    path = tmp_path / "run"
    if what == "file":
        path.write_text("x")
    elif what == "empty":
        path.mkdir()
    elif what == "link":
        path.symlink_to(tmp_path / "nowhere")
    elif what == "loop":
        path.symlink_to(path)
    elif what == "nul":
        path = tmp_path / "a\0b"
    config = from_dict(tiny_config)
    before = files_of(tmp_path)
    for use in (sample, export, replay):
        error_of(lambda use=use: use(config, path))
    training = {"init_from": str(path)}
    begun = merge(tiny_config, {"training": training})
    error_of(lambda: train_lib.train(begun, tmp_path / "new"))
    assert not list((tmp_path / "new").glob("checkpoints/[0-9]*"))
    if what in ("file", "link", "loop", "nul"):
        error_of(lambda: train_lib.train(config, path))
        assert {k: v for k, v in files_of(tmp_path).items() if "new" not in k} == before
