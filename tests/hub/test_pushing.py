"""Exports pushed to the hub: one commit, whole or not at all, and what is not overwritten."""

import signal

import pytest

from diffussm_jax.config import ExportConfig
from diffussm_jax.errors import UserError
from diffussm_jax.exporting.publishing import require_pushable
from tests.hub.hub_server import READER
from tests.hub.repositories import File

PUSH = """
import logging, sys
from pathlib import Path
from diffussm_jax.config import ExportConfig
from diffussm_jax.errors import UserError
from diffussm_jax.exporting.publishing import publish, require_pushable
logging.basicConfig(level=logging.INFO, format="%(message)s")
options = ExportConfig(push_to="ann/digits", push_public="public" in sys.argv)
try:
    require_pushable(options, Path(sys.argv[1]))
    publish(options, Path(sys.argv[1]), step=6)
except UserError as error:
    sys.exit(f"error: {error}")
"""


@pytest.fixture
def folder(exported):
    """An export, and what else may lie there."""
    (exported / "samples").mkdir()
    (exported / "plan.json").write_text("{}")
    (exported / "Thumbs.db").write_bytes(b"what a file server leaves in folders")
    return exported


def push(client, folder, *words, **variables):
    result = client.run("-c", PUSH, folder, *words, **variables)
    assert "Traceback" not in result.stderr, result.stderr
    return result


def error_of(result):
    assert result.returncode == 1
    return result.stderr.strip().splitlines()[-1]


def test_a_push_is_one_commit_of_the_export_alone(client, hub, folder):
    assert push(client, folder).returncode == 0
    repository = hub.repositories["ann/digits"]
    assert repository.private
    assert len(repository.commits) == 2  # the first one is the hub's
    there = {name: file.content for name, file in repository.files.items()}
    there.pop(".gitattributes")
    names = {x.name for x in folder.iterdir()} - {"samples", "plan.json", "Thumbs.db"}
    assert there == {name: (folder / name).read_bytes() for name in names}
    hub.requests.clear()
    result = push(client, folder)
    assert result.returncode == 0
    assert len(repository.commits) == 2
    assert not [line for line in hub.requests if line.startswith("PUT")]


@pytest.mark.slow
def test_what_an_export_no_longer_has_goes_with_the_next_push(client, hub, folder):
    (folder / "model.py").write_text("# of --config.export.format=torch\n")
    push(client, folder)
    assert "model.py" in hub.repositories["ann/digits"].files
    (folder / "model.py").unlink()
    (folder / "LICENSE").write_text("MIT")
    push(client, folder)
    repository = hub.repositories["ann/digits"]
    assert "model.py" not in repository.files
    assert {"LICENSE", ".gitattributes"} <= repository.files.keys()


def test_an_upload_that_is_killed_leaves_no_revision_and_goes_on(client, hub, folder):
    hub.stalls = True
    process = client.start("-c", PUSH, folder)
    assert hub.stalled.wait(60)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    repository = hub.repositories["ann/digits"]
    assert [*repository.files] == [".gitattributes"]
    hub.stalls = False
    assert push(client, folder).returncode == 0
    assert "export.json" in repository.files


@pytest.mark.slow
def test_a_connection_that_is_cut_in_a_file_is_made_again(client, hub, folder):
    hub.drops["PUT /lfs"] = 1
    assert push(client, folder).returncode == 0
    assert "export.json" in hub.repositories["ann/digits"].files


def test_before_its_commit_nothing_is_there_and_no_file_is_sent_twice(client, hub, folder):
    hub.drops["POST .*/commit/"] = 1
    line = error_of(push(client, folder))
    assert line.startswith("error: config.export.push_to: hf://ann/digits: ")
    repository = hub.repositories["ann/digits"]
    assert [*repository.files] == [".gitattributes"]
    sent = dict(hub.received)
    assert sent
    assert push(client, folder).returncode == 0
    assert "export.json" in repository.files
    assert hub.received == sent


@pytest.mark.parametrize("name", ["../digits", "ann/digits.git", "ann/-digits"])
def test_a_name_that_the_hub_refuses_is_told_at_once(name, tmp_path):
    options = ExportConfig(push_to=name, push_dry_run=True)
    with pytest.raises(
        UserError, match=rf"^config.export.push_to: hf://{name}: Repo.id .*'{name}'"
    ):
        require_pushable(options, tmp_path)


@pytest.mark.slow
def test_a_card_that_was_edited_on_the_hub_is_kept(client, hub, folder):
    push(client, folder)
    repository = hub.repositories["ann/digits"]
    edited = File(b"---\nlicense: mit\n---\nMine.\n", False)
    repository.commit(repository.files | {"README.md": edited})
    (folder / "data.json").write_text("{}")
    result = push(client, folder)
    assert "was edited on the hub and is kept" in result.stderr
    assert repository.files["README.md"] == edited
    assert repository.files["data.json"].content == b"{}"
    (folder / "README.md").write_text("Edited here.\n")
    push(client, folder)
    assert repository.files["README.md"].content == b"Edited here.\n"


@pytest.mark.slow
def test_a_repository_of_something_else_is_left_alone(client, hub, folder):
    other = hub.create("ann/digits")
    other.commit(other.files | {"pytorch_model.bin": File(b"x", False)})
    line = error_of(push(client, folder))
    assert "hf://ann/digits holds 'pytorch_model.bin', which does not belong there" in line
    assert len(other.commits) == 2


@pytest.mark.slow
def test_visibility_is_chosen_once(client, hub, folder):
    push(client, folder, "public")
    assert not hub.repositories["ann/digits"].private
    assert "exists and stays public" in push(client, folder).stderr


@pytest.mark.slow
def test_tokens_that_may_not_push(client, hub, folder):
    for token, message in [
        ("hf_expired", "the hub refuses the token: set HF_TOKEN"),
        (None, "there is no token: set HF_TOKEN"),
        (READER, "the token may not do this: use one that may"),
    ]:
        line = error_of(push(client, folder, HF_TOKEN=token))
        assert line.startswith(f"error: config.export.push_to: hf://ann/digits: {message}")
    assert not hub.repositories
