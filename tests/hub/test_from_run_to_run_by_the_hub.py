"""A run pushed, drawn from, verified and trained on from the hub, by the commands of a user."""

import json
from pathlib import Path

import numpy as np
import pytest

import diffussm_jax
from tests import command_line
from tests.hub.client import ROOT
from tests.hub.repositories import File

DIGITS = f"--config={ROOT}/configs/digits.py"
MIRROR = """
from diffussm_jax.files.hub.address import parse
from diffussm_jax.workdir.mirror import mirror
mirror(parse("hf://ann/digits"))
"""
READ = """
from tests import command_line
options = "--workdir=hf://ann/digits", "--mode=export", "--config.export.format=torch"
config, _ = command_line.read(*options)
print(config.export.push_to, config.compilation_cache_dir, config.export.format, config.seed)
"""
LOAD = """
import sys, numpy as np, diffussm_jax
np.save("drawn.npy", diffussm_jax.load("hf://ann/digits").sample(num=4, steps=2, seed=3))
"""


@pytest.mark.slow
def test_a_run_goes_to_the_hub_and_comes_back(client, hub, trained, data_dir):
    def command(*options):
        result = client.command(*options)
        assert result.returncode == 0, result.stderr
        return result.stderr

    push = ("--mode=export", "--config.export.push_to=ann/digits")
    said = command(f"--workdir={trained}", *push, "--config.export.push_dry_run=True")
    assert "would push to hf://ann/digits, private if it is new" in said
    assert not hub.requests
    assert "to hf://ann/digits@" in command(f"--workdir={trained}", *push)
    card = hub.repositories["ann/digits"].files["README.md"].content.decode()
    assert 'diffussm_jax.load("hf://ann/digits")' in card
    assert "![Samples](samples.png)" in card

    assert client.run("-c", LOAD).returncode == 0
    expected = diffussm_jax.load(trained).sample(num=4, steps=2, seed=3)
    np.testing.assert_array_equal(np.load(client.folder / "drawn.npy"), expected)

    options = ("--config.sample.num=4", "--config.sample.steps=2", "--config.sample.seed=3")
    said = command("--workdir=hf://ann/digits", "--mode=sample", *options)
    assert "outputs of --workdir=hf://ann/digits go to ann--digits" in said
    folder = client.folder / "ann--digits"
    np.testing.assert_array_equal(np.load(folder / "samples" / "samples.npz")["arr_0"], expected)
    assert (folder / "model.safetensors").is_symlink()
    assert "draws its 8 images" in command("--workdir=hf://ann/digits", "--mode=verify")

    model = ("model.depth=2", "model.width=16", "model.state_size=8", "model.dtype=float32")
    model += ("diffusion.variance=learned_range",)
    brief = ("training.num_steps=1", "training.sample_every=None", f"data.data_dir={data_dir}")
    fields = (*model, *brief, "training.init_from=hf://ann/digits@main")
    said = command(DIGITS, "--workdir=new", *(f"--config.{field}" for field in fields))
    assert "from the EMA of step 6 of hf://ann/digits@main" in said
    assert "head.kernel: loaded" in said


def test_a_mistake_with_the_hub_ends_a_command_in_one_line_and_2(client, hub):
    result = client.command("--workdir=hf://ann/none", "--mode=verify")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: hf://ann/none: there is no such repository")


def test_a_folder_of_outputs_that_is_somebody_elses_is_left_alone(client, hub):
    hub.create("ann/digits").commit({"export.json": File(b"{}", False)})
    (client.folder / "ann--digits").mkdir()
    (client.folder / "ann--digits" / "export.json").write_text("mine")
    result = client.command("--workdir=hf://ann/digits", "--mode=sample")
    assert result.returncode == 2
    assert "ann--digits for its outputs holds 'export.json'" in result.stderr
    assert (client.folder / "ann--digits" / "export.json").read_text() == "mine"


def test_the_folder_of_outputs_may_hold_an_export_and_is_brought_up_to_date(client, hub):
    repository = hub.create("ann/digits")
    files = {"export.json": File(b"{}", False), "verify.json": File(b"{}", False)}
    repository.commit(files)
    assert client.run("-c", MIRROR).returncode == 0
    folder = client.folder / "ann--digits"
    (folder / "export").mkdir()
    repository.commit({"export.json": File(b"[]", False)})
    result = client.run("-c", MIRROR)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in folder.iterdir()} == {"export", "export.json"}
    assert (folder / "export.json").read_text() == "[]"


@pytest.mark.parametrize("mode", ["train", "replay"])
def test_a_mode_that_needs_a_run_says_so(mode):
    with pytest.raises(ValueError, match="init_from=hf://ann/digits begins a run from the weights"):
        command_line.read(DIGITS, "--workdir=hf://ann/digits", f"--mode={mode}")


@pytest.mark.parametrize("field", ["data.data_dir", "export.folder", "evaluate.reference"])
def test_a_field_that_is_not_read_from_the_hub_says_so(field):
    with pytest.raises(ValueError, match=rf"config.{field} must not be at hf://"):
        command_line.read(DIGITS, "--workdir=run", f"--config.{field}=hf://ann/digits")


def test_a_config_of_the_hub_does_not_say_what_is_written_where(client, hub):
    theirs = {"export": {"push_to": "eve/digits"}, "compilation_cache_dir": "/eve", "seed": 5}
    config = File(json.dumps(theirs).encode(), False)
    hub.create("ann/digits").commit({"export.json": File(b"{}", False), "config.json": config})
    result = client.run("-c", READ)
    assert result.stdout.split() == ["None", "None", "torch", "5"], result.stderr


def test_without_a_config_that_of_the_work_directory_is_taken(exported):
    config, workdir = command_line.read(
        f"--workdir={exported}", "--mode=sample", "--config.sample.num=3"
    )
    assert (config.model.width, config.sample.num, workdir) == (16, 3, Path(exported))
