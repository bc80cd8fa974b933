"""Data sets on the hub, from a server of its protocol on loopback; nothing is patched."""

import json
import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from diffussm_jax.config import from_dict
from diffussm_jax.config.parsing import ConfigError
from diffussm_jax.data.names import portable_name
from tests.data.set_server import serving
from tests.data.test_parquet import table_of
from tests.jobs import TINY

OPEN = """
import json, sys
from diffussm_jax.data.sources import open_images
from diffussm_jax.errors import UserError
from tests.data.test_parquet import config_of, numbers_of
from pathlib import Path

for name, split in json.loads(sys.argv[1]):
    try:
        source = open_images(config_of(name, Path(sys.argv[2])), split)
        print(json.dumps([numbers_of(source), source.facts]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


def file_of(numbers, tmp_path):
    path = tmp_path / "file.parquet"
    pq.write_table(table_of(numbers), path)
    return path.read_bytes()


@pytest.fixture
def hub(tmp_path):
    """Repositories with parquet, with the hub's conversion alone, gated, and without any."""
    with serving() as server:
        train = {
            f"data/train-{x:05d}-of-00002.parquet": file_of(range(5 * x, 5 * x + 5), tmp_path)
            for x in range(2)
        }
        test = {"data/test-00000-of-00001.parquet": file_of(range(90, 93), tmp_path)}
        server.commit("ann/animals", train | test | {"README.md": b"animals"})
        server.commit("ann/zips", {"images.zip": b"zip"})
        converted = {f"{x}/train/0000.parquet": file_of(range(40, 43), tmp_path) for x in "ab"}
        server.commit("ann/zips", converted, branch="refs/convert/parquet")
        server.commit("ann/gated", test)
        server.gated.add("ann/gated")
        server.commit("ann/none", {"README.md": b"nothing"})
        yield server


@pytest.fixture
def environment(hub, tmp_path):
    kept = {name: x for name, x in os.environ.items() if not name.startswith("HF_")}
    return kept | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


def open_all(wanted, environment, tmp_path):
    """What each (name, split) gives in a new process: numbers and facts, or its error."""
    words = [sys.executable, "-c", OPEN, json.dumps(wanted), str(tmp_path)]
    process = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return [json.loads(line) for line in process.stdout.splitlines()]


def test_data_sets_are_downloaded_once_and_used_without_a_network(hub, environment, tmp_path):
    first = hub.branches["ann/animals"]["main"]
    wanted = [
        ["hf:ann/animals", "train[20%:]"],
        ["hf:ann/zips:b", "train"],
        [f"hf:ann/animals@{first}", "test"],
        ["hf:ann/zips", "train"],
        ["hf:ann/animals:birds", "train"],
        ["hf:ann/animals", "valid"],
        ["hf:ann/animals@v2", "train"],
        ["hf:ann/none", "train"],
        ["hf:ann/missing", "train"],
        ["hf:ann/gated", "test"],
    ]
    train, converted, test, *refused = open_all(wanted, environment, tmp_path)
    assert train[0] == list(range(2, 10))
    assert train[1]["revision"] == first
    assert train[1]["class_names"] == ["cat", "dog", "eel"]
    assert train[1]["source"] == "hf:ann/animals, 8 images"
    assert converted[0] == list(range(40, 43))
    assert test[0] == list(range(90, 93))
    expected = [
        "has several data sets: name one of a, b behind it, as :CONFIG",
        "has no config 'birds'",
        "has no split 'valid'; it has test, train",
        "it has no such revision",
        "has no parquet, and the hub has converted none",
        "there is no such repository, or it is private",
        "it is gated: ask for access",
    ]
    for (name, _), error, part in zip(wanted[3:], refused, expected, strict=True):
        assert part in error
        assert name.partition("@")[0] in error
        assert "\n" not in error
    assert sorted(hub.downloads) == [
        "b/train/0000.parquet",
        "data/test-00000-of-00001.parquet",
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
    ]
    hub.shutdown()
    hub.server_close()
    wanted = [["hf:ann/animals", "train[20%:]"], ["hf:ann/zips:b", "train"], ["hf:ann/none", "x"]]
    *again, error = open_all(wanted, environment, tmp_path)
    assert again == [train, converted]
    assert "cannot be reached" in error and "no complete copy is in" in error


def train_command(environment, tmp_path, **changes):
    fields = TINY | {
        "data.name": "hf:ann/animals",
        "data.data_dir": tmp_path / "tfds",
        "data.num_classes": 3,
        "data.channels": 1,
        "data.eval_split": None,
        "training.batch_size": 8,
        "training.num_steps": 2,
        "training.sample_every": None,
        **changes,
    }
    options = [f"--config.{name}={value}" for name, value in fields.items()]
    words = [sys.executable, "-m", "diffussm_jax.main", "--config=configs/digits.py"]
    return subprocess.run(
        [*words, f"--workdir={tmp_path / 'run'}", *options],
        env=environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_run_goes_on_in_the_same_images_alone(hub, environment, tmp_path):
    first = train_command(environment, tmp_path)
    assert first.returncode == 0, first.stderr
    facts = json.loads((tmp_path / "run" / "data.json").read_text())
    assert facts["revision"] == hub.branches["ann/animals"]["main"]
    files = dict(hub.commits["ann/animals"][facts["revision"]])
    hub.commit("ann/animals", files | {"README.md": b"a new text"})
    told = train_command(environment, tmp_path, **{"training.num_steps": 4})
    assert told.returncode == 0, told.stderr
    assert "the data have changed since the run began: revision was" in told.stderr
    name = "data/train-00001-of-00002.parquet"
    hub.commit("ann/animals", files | {name: file_of([5, 6, 7, 8, 77], tmp_path)})
    refused = train_command(environment, tmp_path, **{"training.num_steps": 6})
    assert refused.returncode == 2
    assert "began with other data: 10 images" in refused.stderr
    pinned = {"training.num_steps": 6, "data.name": f"hf:ann/animals@{facts['revision']}"}
    assert train_command(environment, tmp_path, **pinned).returncode == 0


def test_names_on_the_hub_have_one_form():
    assert portable_name("hf:ann/animals@v2:birds") == "hf:ann/animals:birds"
    for name in ("hf:", "hf:animals", "hf:ann/animals@", "hf:ann/ani mals", "hf://ann/animals"):
        with pytest.raises(ConfigError, match=r"data.name must be hf:USER/NAME\[@REVISION\]"):
            from_dict({"data": {"name": name}})


def test_the_name_of_a_repository_of_weights_has_no_revision():
    assert portable_name("hf://ann/vae@v2") == portable_name("hf://ann/vae") == "ann/vae"


@pytest.mark.parametrize("value", [{"name": "parquet:gs://b/x"}, {"cache_dir": "gs://b/x"}])
def test_what_is_read_and_kept_on_a_disk_alone_is_refused_in_a_bucket(value):
    with pytest.raises(ConfigError, match=r"data\.(name|cache_dir) must .* on a disk"):
        from_dict({"data": value})
