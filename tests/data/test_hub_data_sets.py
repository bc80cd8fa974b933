"""Data sets on the hub, from a server of its protocol on loopback; nothing is patched."""

import json

import pyarrow.parquet as pq
import pytest

from diffussm_jax.config import from_dict
from diffussm_jax.config.parsing import ConfigError
from diffussm_jax.data.names import portable_name
from tests.data.test_parquet import table_of
from tests.hub.client import ROOT, Client
from tests.hub.hub_server import serving
from tests.hub.repositories import File
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
    return File(path.read_bytes(), True)


@pytest.fixture
def hub(tmp_path):
    """Repositories with parquet, with the hub's conversion alone, gated, and without any."""
    with serving() as server:
        train = {
            f"data/train-{x:05d}-of-00002.parquet": file_of(range(5 * x, 5 * x + 5), tmp_path)
            for x in range(2)
        }
        test = {"data/test-00000-of-00001.parquet": file_of(range(90, 93), tmp_path)}
        card = {"README.md": File(b"animals", False)}
        server.create("datasets/ann/animals").commit(train | test | card)
        zips = server.create("datasets/ann/zips")
        zips.commit({"images.zip": File(b"zip", True)})
        converted = {
            f"{name}/train/0000.parquet": file_of(range(first, first + 3), tmp_path)
            for name, first in (("a", 30), ("b", 40))
        }
        zips.commit(converted, branch="refs/convert/parquet")
        gated = server.create("datasets/ann/gated")
        gated.commit(test)
        gated.gated = True
        server.create("datasets/ann/none").commit(card)
        yield server


@pytest.fixture
def animals(hub):
    return hub.repositories["datasets/ann/animals"]


@pytest.fixture
def client(hub, tmp_path):
    return Client(hub, tmp_path)


def open_all(wanted, client):
    """What each (name, split) gives in a new process: numbers and facts, or its error."""
    process = client.run("-c", OPEN, json.dumps(wanted), client.folder, HF_TOKEN=None)
    assert process.returncode == 0, process.stderr
    return [json.loads(line) for line in process.stdout.splitlines()]


def downloads(hub):
    """The names of the large files that were sent."""
    commits = [x for repository in hub.repositories.values() for x in repository.commits.values()]
    names = {file.sha256: name for files in commits for name, file in files.items()}
    start = "GET /cdn/"
    return [names[x.removeprefix(start)] for x in hub.requests if x.startswith(start)]


def test_data_sets_are_downloaded_once_and_used_without_a_network(hub, animals, client):
    first = animals.head
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
    train, converted, test, *refused = open_all(wanted, client)
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
    assert sorted(downloads(hub)) == [
        "b/train/0000.parquet",
        "data/test-00000-of-00001.parquet",
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
    ]
    hub.shutdown()
    hub.server_close()
    wanted = [["hf:ann/animals", "train[20%:]"], ["hf:ann/zips:b", "train"], ["hf:ann/none", "x"]]
    *again, error = open_all(wanted, client)
    assert again == [train, converted]
    assert "cannot be reached" in error and "no complete copy is in" in error


def train(client, **changes):
    fields = TINY | {
        "data.name": "hf:ann/animals",
        "data.data_dir": client.folder / "tfds",
        "data.num_classes": 3,
        "data.channels": 1,
        "data.eval_split": None,
        "training.batch_size": 8,
        "training.num_steps": 2,
        "training.sample_every": None,
        **changes,
    }
    options = [f"--config.{name}={value}" for name, value in fields.items()]
    digits = f"--config={ROOT}/configs/digits.py"
    return client.command(digits, "--workdir=run", *options, HF_TOKEN=None)


@pytest.mark.slow
def test_a_run_goes_on_in_the_same_images_alone(animals, client, tmp_path):
    first = train(client)
    assert first.returncode == 0, first.stderr
    facts = json.loads((tmp_path / "run" / "data.json").read_text())
    assert facts["revision"] == animals.head
    files = animals.files
    animals.commit(files | {"README.md": File(b"a new text", False)})
    told = train(client, **{"training.num_steps": 4})
    assert told.returncode == 0, told.stderr
    assert "the data have changed since the run began: revision was" in told.stderr
    name = "data/train-00001-of-00002.parquet"
    animals.commit(files | {name: file_of([5, 6, 7, 8, 77], tmp_path)})
    refused = train(client, **{"training.num_steps": 6})
    assert refused.returncode == 2
    assert "began with other data: 10 images" in refused.stderr
    pinned = {"training.num_steps": 6, "data.name": f"hf:ann/animals@{facts['revision']}"}
    assert train(client, **pinned).returncode == 0


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
