"""What an export keeps of the images that it draws, and what --mode=verify says of them."""

import dataclasses
import hashlib
import json
import logging

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import diffussm_jax
from diffussm_jax.config import from_dict
from diffussm_jax.errors import OtherImages, UserError
from diffussm_jax.export import export
from diffussm_jax.exporting.evidence import evidence_files
from diffussm_jax.files import read_tensors, sha256_of
from diffussm_jax.training.state import init_params
from diffussm_jax.verify import verify
from diffussm_jax.workdir.exports import write_export
from diffussm_jax.workdir.weights import Weights
from tests.conftest import TINY_MODEL, merge


def strip(folder):
    return np.asarray(Image.open(folder / "verify.png"))


def note_checksums(folder):
    summary = json.loads((folder / "export.json").read_text())
    summary["sha256"] = {name: sha256_of(folder / name) for name in summary["sha256"]}
    (folder / "export.json").write_text(json.dumps(summary))


def change_image(folder, difference):
    """Keep another image than the model draws: the third one differs in a row of pixels."""
    pixels = strip(folder).astype(int)
    row = pixels[5, 16:24]
    row += np.where(row < 128, difference, -difference)
    Image.fromarray(pixels.astype(np.uint8)).save(folder / "verify.png")
    kept = json.loads((folder / "verify.json").read_text())
    kept["sha256"][2] = hashlib.sha256(pixels[:, 16:24].astype(np.uint8).tobytes()).hexdigest()
    (folder / "verify.json").write_text(json.dumps(kept))
    note_checksums(folder)


def test_what_is_kept_is_what_the_model_samples(exported):
    kept = json.loads((exported / "verify.json").read_text())
    options = {name: x for name, x in kept["sample"].items() if name not in ("labels", "num")}
    images = diffussm_jax.load(exported).sample(**options)
    np.testing.assert_array_equal(np.concatenate(images, axis=1)[..., 0], strip(exported))
    assert kept["sha256"] == [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    assert kept["sample"]["steps"] == 4
    with Image.open(exported / "samples.png") as picture:
        assert picture.size == (104, 104)  # 3 x 3 of 8 pixels, zoomed by 4


def test_an_export_draws_its_images(exported, tiny_config, caplog):
    for model in ({}, {"ssm_implementation": "fft"}):
        config = merge(tiny_config, {"model": model})
        with caplog.at_level(logging.INFO, "diffussm_jax"):
            verify(config, exported)
    assert "step 6 draws its 8 images bit by bit" in caplog.text


def test_images_that_differ_a_little_are_within_the_tolerance(exported, tiny_config, caplog):
    change_image(exported, 3)
    with caplog.at_level(logging.INFO, "diffussm_jax"):
        verify(from_dict(tiny_config), exported)
    mean = 3 * 8 / (8 * 64)
    assert f"7 are equal, and levels differ by {mean:.3g} in the mean (at most 1)" in caplog.text
    assert "by 3 at most (at most 32)" in caplog.text


def test_other_images_are_told(exported, tiny_config):
    change_image(exported, 40)
    with pytest.raises(OtherImages, match=r"draws other images than it keeps: 7 are eq") as end:
        verify(from_dict(tiny_config), exported)
    assert end.value.exit_code == 1
    assert "by 40 at most (at most 32)" in end.value.last_line
    assert "\n" not in end.value.last_line


def test_other_weights_draw_other_images(exported, tiny_config):
    path = exported / "model.safetensors"
    tensors = read_tensors(path)
    tensors["head.kernel"] = -tensors["head.kernel"]
    tensors["head.bias"] = tensors["head.bias"] + np.float32(0.5)
    safetensors.numpy.save_file(tensors, path)
    note_checksums(exported)
    with pytest.raises(OtherImages):
        verify(from_dict(tiny_config), exported)


@pytest.mark.parametrize("name", ["verify.json", "verify.png"])
def test_damage_is_named(exported, tiny_config, name):
    data = bytearray((exported / name).read_bytes())
    data[len(data) // 2] ^= 1
    (exported / name).write_bytes(data)
    with pytest.raises(UserError, match=rf"{name} is (not the file|damaged)"):
        verify(from_dict(tiny_config), exported)
    (exported / "verify.png").unlink()
    assert diffussm_jax.load(exported).step == 6


def test_images_of_another_number_are_damage(exported, tiny_config):
    evidence, picture = exported / "verify.json", strip(exported)
    Image.fromarray(picture[:, :-1]).save(exported / "verify.png")
    note_checksums(exported)
    with pytest.raises(UserError, match="verify.png cannot be read"):
        verify(from_dict(tiny_config), exported)
    kept = json.loads(evidence.read_text())
    evidence.write_text(json.dumps(kept | {"sha256": kept["sha256"][1:]}))
    note_checksums(exported)
    with pytest.raises(UserError, match="verify.json is damaged: it must be of 8 images"):
        verify(from_dict(tiny_config), exported)


def test_what_keeps_no_images_is_told_to_be_exported_again(exported, trained, tiny_config):
    config = merge(tiny_config, {"export": {"folder": str(exported), "verify": "never"}})
    export(config, trained)
    assert not [path.name for path in exported.iterdir() if path.name.startswith("verify")]
    for path in (exported, trained):
        with pytest.raises(UserError, match=r"has no verify.json.*export again"):
            verify(config, path)


def test_a_cpu_draws_no_images_that_take_long_unless_it_must(
    exported, trained, tiny_config, monkeypatch, caplog
):
    monkeypatch.setattr("diffussm_jax.export.MAX_ON_CPU", 1.0)
    for verify_option, is_drawn in (("auto", False), ("always", True)):
        options = {"folder": str(exported), "verify": verify_option}
        with caplog.at_level(logging.WARNING, "diffussm_jax"):
            export(merge(tiny_config, {"export": options}), trained)
        assert (exported / "verify.png").exists() == is_drawn
    assert "config.export.verify=always draws them" in caplog.text


def test_a_model_of_latents_keeps_latents(tmp_path, caplog):
    values = {
        "model": TINY_MODEL,
        "data": {"space": "latents", "image_size": 64, "channels": 3, "num_classes": 3},
        "autoencoder": {"name": "/no/such/folder"},
        "sample": {"steps": 4},
        "mesh": {"data": -1},
    }
    config = from_dict(values)
    params = jax.tree.map(np.asarray, init_params(config))
    params["head"]["bias"] = params["head"]["bias"] + np.float32(0.3)
    weights = Weights(config, params, 7, None)
    with caplog.at_level(logging.INFO, "diffussm_jax"):
        drawn = evidence_files(weights, tmp_path)
    assert drawn.keys() == {"verify.json", "verify.safetensors"}
    assert "no picture for the model card" in caplog.text
    assert safetensors.numpy.load(drawn["verify.safetensors"])["latents"].shape == (8, 8, 8, 4)
    tensors = {name: np.asarray(x) for name, x in jax.tree_util.tree_leaves_with_path(params)}
    tensors = {".".join(key.key for key in path): x for path, x in tensors.items()}
    write_export(tmp_path / "weights", config, {}, tensors, 7, drawn=drawn)
    with caplog.at_level(logging.INFO, "diffussm_jax"):
        verify(dataclasses.replace(config), tmp_path / "weights")
    assert "step 7 draws its 8 images bit by bit" in caplog.text
