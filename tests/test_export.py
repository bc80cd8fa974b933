"""EMA weights as a folder: what is written, read back, sampled from, and refused."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

import diffussm_jax
from diffussm_jax.config import ExportConfig, from_dict, to_json
from diffussm_jax.errors import UserError
from diffussm_jax.export import export
from diffussm_jax.files import read_tensors
from diffussm_jax.workdir.exports import CHECKED_FILES
from diffussm_jax.workdir.weights import load_export, load_weights
from tests.conftest import merge


def test_an_export_gives_the_ema_back(exported, trained):
    weights, of_run = load_export(exported), load_weights(trained)
    jax.tree.map(np.testing.assert_array_equal, weights.params, of_run.params)
    assert (weights.step, weights.class_names) == (6, [str(i) for i in range(10)])
    assert (weights.config.model, weights.config.diffusion) == (
        of_run.config.model,
        of_run.config.diffusion,
    )


def test_an_export_samples_as_its_run_does(exported, trained):
    ours, theirs = (diffussm_jax.load(path).sample(num=8, steps=3) for path in (exported, trained))
    np.testing.assert_array_equal(ours, theirs)


def test_any_reader_of_safetensors_can_use_it(exported):
    tensors = safetensors.numpy.load_file(exported / "model.safetensors")
    assert tensors["blocks.w0.kernel"].shape == (2, 16, 16)
    assert {x.dtype for x in tensors.values()} == {np.dtype(np.float32)}


def test_the_model_card_says_what_it_is(exported, data_dir):
    card = (exported / "README.md").read_text()
    assert "6 steps of 16 images" in card
    assert "10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in card
    assert "DiffuSSM on digits" in card
    for path in exported.iterdir():
        assert data_dir.encode() not in path.read_bytes(), "a path of this machine"


def test_an_export_can_be_written_again_but_nothing_else(exported, trained, tiny_config):
    before = (exported / "model.safetensors").read_bytes()
    config = merge(tiny_config, {"export": {"folder": str(exported)}})
    export(config, trained)
    assert (exported / "model.safetensors").read_bytes() == before
    for name in (".gitattributes", "LICENSE"):  # as a hub keeps them
        (exported / name).touch()
    export(config, trained)
    (exported / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"export.folder: .*holds 'thesis.tex'"):
        export(config, trained)


def test_the_work_directory_itself_is_refused(trained, tiny_config):
    config = merge(tiny_config, {"export": {"folder": str(trained)}})
    with pytest.raises(UserError, match="which does not belong there"):
        export(config, trained)
    assert (trained / "config.json").read_text().count("data_dir") == 1


def test_by_default_it_lies_in_the_work_directory(trained, tiny_config, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    of_run = merge(tiny_config, {"export": {"push_to": "ann/digits", "format": "torch"}})
    (run / "config.json").write_text(to_json(of_run))
    export(from_dict(tiny_config), run)
    exported = load_export(run / "export")
    assert exported.step == 6
    assert exported.config.export == ExportConfig()  # nobody else pushes there by it


@pytest.mark.parametrize("name", CHECKED_FILES)
@pytest.mark.parametrize("damage", ["flipped", "truncated", "emptied", "missing"])
def test_every_damaged_file_is_named(exported, name, damage):
    path = exported / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"flipped": data, "truncated": data[:-7]}.get(damage, b""))
    if damage == "missing":
        path.unlink()
    with pytest.raises(UserError, match=rf"{name} (is not the file|cannot be read)"):
        load_export(exported)


def test_an_export_without_its_last_file_is_not_whole(exported):
    (exported / "export.json").unlink()
    with pytest.raises(UserError, match="is no whole export"):
        diffussm_jax.load(exported)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("head.bias"), r"head.bias is missing there and float32\[4\]"),
        # As versions wrote it that did not train B.
        (lambda t: t.pop("blocks.ssm.b"), r"blocks.ssm.b is missing there .* use the version"),
        (
            lambda t: t.update(extra=np.zeros(1, np.float32)),
            r"extra is float32\[1\] there and missing",
        ),
        (
            lambda t: t.update({"head.bias": np.zeros(3, np.float32)}),
            r"head.bias is float32\[3\] there",
        ),
        (
            lambda t: t.update({"head.bias": np.zeros(2, np.float16)}),
            r"head.bias is float16\[2\] there",
        ),
    ],
)
def test_weights_of_another_model_are_refused(exported, change, message):
    """With checksums that agree: another tool wrote it."""
    tensors = read_tensors(exported / "model.safetensors")
    change(tensors)
    safetensors.numpy.save_file(tensors, exported / "model.safetensors")
    note_checksums(exported)
    with pytest.raises(UserError, match=message):
        load_export(exported)


def note_checksums(folder):
    from diffussm_jax.files import sha256_of

    summary = json.loads((folder / "export.json").read_text())
    summary["sha256"] = {name: sha256_of(folder / name) for name in CHECKED_FILES}
    (folder / "export.json").write_text(json.dumps(summary))


def test_what_an_export_does_not_have_is_said(exported):
    with pytest.raises(UserError, match="has the EMA weights of step 6 alone"):
        diffussm_jax.load(exported, step=3)
    with pytest.raises(UserError, match="has the EMA weights of step 6 alone"):
        diffussm_jax.load(exported, ema=False)
