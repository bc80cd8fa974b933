"""Exports read from the hub: what is downloaded, and the one line of each thing that goes wrong."""

from pathlib import Path

import pytest

from diffussm_jax.errors import UserError
from diffussm_jax.files.hub.address import Address, parse
from diffussm_jax.files.hub.snapshot import EXPORT_FILES
from diffussm_jax.files.paths import as_path
from diffussm_jax.workdir.exports import CHECKED_FILES
from tests.hub.hub_server import READER
from tests.hub.repositories import File

FETCH = """
import sys
from diffussm_jax.errors import UserError
from diffussm_jax.files.paths import as_path
try:
    print(as_path(sys.argv[1]))
except UserError as error:
    sys.exit(f"error: {error}")
"""
SMALL, LARGE = File(b"{}", False), File(b"x" * 10_000, True)


@pytest.fixture
def repository(hub):
    """A public repository with files that an export has, and others."""
    made = hub.create("ann/digits")
    names = ("export.json", "config.json", "data.json", "notes.txt")
    made.commit(dict.fromkeys(names, SMALL) | {"model.safetensors": LARGE, "old.bin": LARGE})
    return made


def error_of(client, address, **variables):
    result = client.run("-c", FETCH, address, **variables)
    assert result.returncode == 1, result.stdout
    assert "Traceback" not in result.stderr
    (line,) = [x for x in result.stderr.splitlines() if x.startswith("error")]
    return line


@pytest.mark.parametrize("name", ["hf://ann", "hf://ann/digits/x", "hf://ann/digits@", "hf:///a/b"])
def test_an_address_of_another_form_is_refused(name):
    with pytest.raises(UserError, match=r"must be hf://USER/NAME or hf://USER/NAME@REVISION"):
        as_path(name)


def test_an_address_names_a_repository_a_revision_and_a_folder():
    assert parse("hf://ann/dig.its") == Address("ann/dig.its")
    address = parse("hf://ann/digits@refs/pr/1")
    assert address == Address("ann/digits", "refs/pr/1")
    assert str(address) == "hf://ann/digits@refs/pr/1"
    assert address.folder_name == "ann--digits--refs--pr--1"


def test_what_is_read_of_an_export_is_downloaded_once(client, hub, repository):
    result = client.run("-c", FETCH, "hf://ann/digits")
    folder = Path(result.stdout.strip())
    assert {path.name for path in folder.iterdir()} == {
        "export.json",
        "config.json",
        "data.json",
        "model.safetensors",
    }
    assert (folder / "model.safetensors").read_bytes() == LARGE.content
    hub.requests.clear()
    assert client.run("-c", FETCH, "hf://ann/digits").stdout == result.stdout
    assert not [line for line in hub.requests if "resolve" in line or "cdn" in line]
    for name in CHECKED_FILES:
        assert name in EXPORT_FILES


def test_processes_that_begin_together_get_one_copy(client, hub, repository):
    processes = [client.start("-c", FETCH, "hf://ann/digits") for _ in range(4)]
    paths = {process.communicate(timeout=60)[0] for process in processes}
    assert len(paths) == 1
    assert len([x for x in hub.requests if x.startswith("GET /cdn")]) == 1


def test_a_revision_is_that_of_its_name(client, repository):
    first = repository.head
    repository.refs["v1"] = first
    repository.commit(repository.files | {"config.json": File(b"{1}", False)})
    texts = {}
    for revision in ("", "@v1", f"@{first}", "@main"):
        folder = Path(client.run("-c", FETCH, f"hf://ann/digits{revision}").stdout.strip())
        texts[revision] = (folder / "config.json").read_text()
    assert texts == {"": "{1}", "@v1": "{}", f"@{first}": "{}", "@main": "{1}"}


def test_without_a_network_a_complete_copy_serves(client, repository):
    first = client.run("-c", FETCH, "hf://ann/digits").stdout
    for variables in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:1"}):
        assert client.run("-c", FETCH, "hf://ann/digits", **variables).stdout == first
        line = error_of(client, "hf://ann/others", **variables)
        assert "cannot be reached" in line
        assert "check the network" in line


def test_what_goes_wrong_is_one_line_with_the_mend(client, hub, repository):
    line = error_of(client, "hf://ann/letters")
    assert "hf://ann/letters: there is no such repository, or it is private: check the name" in line
    line = error_of(client, "hf://ann/digits", HF_TOKEN="hf_expired")
    assert "the hub refuses the token: set HF_TOKEN or run `hf auth login`" in line
    line = error_of(client, "hf://ann/digits@v9")
    assert "hf://ann/digits@v9: it has no such revision" in line
    repository.gated = True
    for token in (None, READER):
        line = error_of(client, "hf://ann/digits", HF_TOKEN=token)
        assert "hf://ann/digits: it is gated: ask for access on its page" in line
    repository.gated, repository.private = False, True
    for token in (None, READER):
        line = error_of(client, "hf://ann/digits", HF_TOKEN=token)
        assert "there is no such repository, or it is private" in line
    repository.commit({"model.safetensors": LARGE})
    assert "hf://ann/digits has no export.json" in error_of(client, "hf://ann/digits")


def test_a_download_that_is_cut_goes_on(client, hub, repository):
    hub.drops["GET /cdn"] = 1
    folder = Path(client.run("-c", FETCH, "hf://ann/digits").stdout.strip())
    assert (folder / "model.safetensors").read_bytes() == LARGE.content


def test_an_autoencoder_is_found_by_the_same_rules(client, hub):
    files = {"config.json": SMALL, "diffusion_pytorch_model.safetensors": LARGE}
    hub.create("ann/vae").commit(files)
    find = FETCH.replace(
        "files.paths import as_path", "autoencoder.weights import find_autoencoder"
    )
    find = find.replace("as_path(", "find_autoencoder(")
    for name in ("ann/vae", "hf://ann/vae", "hf://ann/vae@main"):
        folder = Path(client.run("-c", find, name).stdout.strip())
        assert {path.name for path in folder.iterdir()} == {*files}
    result = client.run("-c", find, "ann/none")
    assert "config.autoencoder.name: 'ann/none' is no folder" in result.stderr
    assert "hf://ann/none: there is no such repository" in result.stderr
