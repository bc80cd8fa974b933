"""What the modes write into a bucket is what they write on a disk, byte for byte."""

import json
import shutil

import pytest

from diffussm_jax.evaluate import evaluate
from diffussm_jax.evaluation import classifier
from diffussm_jax.export import export
from diffussm_jax.exporting.subfolder import write_subfolder
from diffussm_jax.files.paths import as_path
from diffussm_jax.inspect import inspect
from diffussm_jax.refstats import refstats
from diffussm_jax.sample import sample
from diffussm_jax.sampling.model import load
from diffussm_jax.train import train
from diffussm_jax.workdir import lock
from tests.conftest import merge


@pytest.fixture(autouse=True)
def no_wait(monkeypatch):
    """A lease is claimed at once: no test here starts two jobs."""
    monkeypatch.setattr(lock, "SETTLING_SECONDS", 0.0)


@pytest.fixture
def runs(trained_once, bucket, tmp_path):
    """A finished run, in a bucket and on the disk."""
    remote, local = as_path(f"{bucket}/run"), tmp_path / "run"
    shutil.copytree(trained_once, local)
    remote.replace_by(local)
    return remote, local


def contents(folder, *, without=()):
    """The bytes of all files below a folder, by name."""
    if hasattr(folder, "names"):
        names = folder.names()
    else:
        names = [str(x.relative_to(folder)) for x in folder.rglob("*") if x.is_file()]
    return {name: (folder / name).read_bytes() for name in names if name not in without}


def test_samples_and_exports(runs, tiny_config):
    outputs = ("grid", "npz", "png", "classes")
    config = merge(tiny_config, {"sample": {"outputs": outputs}})
    for run in runs:
        sample(config, run)
        sample(config, run)  # all of it is there already
        export(config, run)
    for folder in ("samples", "export"):
        ours, theirs = (contents(run / folder) for run in runs)
        assert ours == theirs and ours
    remote, local = (load(str(run / "export")) for run in runs)
    assert remote.sample([3]).tobytes() == local.sample([3]).tobytes()


def test_a_folder_in_an_export_takes_the_place_of_the_one_before(bucket, tmp_path):
    for place in (as_path(f"{bucket}/export/web"), tmp_path / "export/web"):
        write_subfolder(place, {"index.html": b"1", "runtime/old.mjs": b"1"})
        write_subfolder(place, {"index.html": b"2", "runtime/new.mjs": b"2"})
        assert contents(place) == {"index.html": b"2", "runtime/new.mjs": b"2"}
        write_subfolder(place, {})
        write_subfolder(place, {})
        assert not place.exists()


@pytest.mark.slow
def test_scores_against_a_reference_of_the_bucket(runs, tiny_config, bucket, tmp_path):
    results = []
    for run, place in zip(runs, (bucket, tmp_path)):
        evaluation = {"features": "pixels", "reference": f"{place}/real.npz"}
        config = merge(tiny_config, {"evaluate": evaluation})
        refstats(config, run)
        refstats(config, run)  # which is there already
        evaluate(config, run)
        given = {"images": f"{place}/real.npz", "name": "given"}
        evaluate(merge(tiny_config, {"evaluate": evaluation | given}), run)
        files = [run / "evaluation" / f"{name}.json" for name in ("default", "given")]
        results.append([json.loads(x.read_text(encoding="utf-8"))["scores"] for x in files])
    assert results[0] == results[1]


def header_and_data(file: bytes) -> tuple[dict, bytes]:
    """The JSON header of a safetensors file, and its tensors."""
    start = 8 + int.from_bytes(file[:8], "little")
    return json.loads(file[8:start]), file[start:]


@pytest.mark.slow
def test_a_classifier_is_trained_into_the_bucket(runs, tiny_config, monkeypatch):
    for name in ("NUM_STEPS", "NUM_EPOCHS"):
        monkeypatch.setattr(classifier, name, 1)
    config = merge(tiny_config, {"evaluate": {"features": "classifier"}})
    for run in runs:
        classifier.find_or_train(config, run)
    ours, theirs = (contents(run / "evaluation")[classifier.FILE] for run in runs)
    # safetensors writes the two entries of the metadata in any order.
    (our_facts, our_bytes), (their_facts, their_bytes) = map(header_and_data, (ours, theirs))
    assert our_facts == their_facts and our_bytes == their_bytes
    given = {"weights": str(runs[0] / "evaluation" / classifier.FILE)}
    config = merge(tiny_config, {"evaluate": {"features": "classifier"} | given})
    assert classifier.find_or_train(config, None)[1]["sha256"]


@pytest.mark.slow
def test_a_look_inside_and_another_run_that_begins_from_the_bucket(runs, tiny_config, tmp_path):
    config = merge(tiny_config, {"inspect": {"num": 4}})
    for run in runs:
        inspect(config, run)
    ours, theirs = (contents(run / "inspect") for run in runs)
    assert ours.keys() == theirs.keys() and ours["inspect.json"] == theirs["inspect.json"]
    training = {"num_steps": 1, "init_from": str(runs[0])}
    train(merge(tiny_config, {"training": training}), tmp_path / "next")
    first, second = (load(str(run)) for run in (runs[0], tmp_path / "next"))
    assert first.step == 6 and second.step == 1
