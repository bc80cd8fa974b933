"""`--mode=edit` and `model.edit`: what comes back exactly, what is refused, and each kind once."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import diffussm_jax
from diffussm_jax.edit import edit
from diffussm_jax.editing.folder import read_folder
from diffussm_jax.editing.results import psnr
from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.sampling.editor import Editor
from diffussm_jax.sampling.model import TrainedModel
from tests import command_line
from tests.conftest import merge
from tests.fuzz.one_line import error_of
from tests.sampling.test_generator import random_weights

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)


def save(path, pixels, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.squeeze(pixels))
    (image if mode is None else image.convert(mode)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Three pictures with masks of their left halves, in folders of classes."""
    folder = tmp_path / "images"
    mask = np.zeros((8, 8), np.uint8)
    mask[:, :4] = 255
    for number, picture in enumerate(PICTURES):
        save(folder / str(number) / "a.png", picture)
        save(folder / str(number) / "a.mask.png", mask)
    return folder


@pytest.fixture
def run(trained_once, tmp_path):
    return shutil.copytree(trained_once, tmp_path / "run")


def edit_config(tiny_config, folder, sample=None, **options):
    edit = {"images": str(folder), "resamplings": 2, "jump_length": 2, "iterations": 2} | options
    return merge(tiny_config, {"edit": edit, "sample": {"steps": 3} | (sample or {})})


def pixels_of(path):
    return np.asarray(Image.open(path)).reshape(8, 8, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["img2img", "inpaint", "outpaint", "invert", "interpolate", "vary"]
)
def test_every_kind_writes_its_results(kind, run, folder, tiny_config):
    num = {"interpolate": 2, "vary": 2}.get(kind, 1)
    rectangle = (2, 2, 4, 4) if kind == "outpaint" else None
    changes = {"kind": kind, "num": num, "rectangle": rectangle, "labels": "folders"}
    edit(edit_config(tiny_config, folder, **changes), run)
    results = json.loads((run / "edit" / "edit.json").read_text())
    assert results["edit"]["kind"] == kind
    assert len(results["results"]) == (4 if kind == "interpolate" else 3 * num)
    for result in results["results"]:
        assert pixels_of(run / "edit" / result["file"]).dtype == np.uint8
        assert {"seed", "index", "images", "labels", "target"} <= result.keys()
        assert ("psnr" in result) == (kind == "invert")
    with Image.open(run / "edit" / "grid.png") as grid:
        columns = {"inpaint": 3, "outpaint": 3, "vary": 3, "interpolate": 4}.get(kind, 2)
        assert (grid.width / 4 + 1) / 9 % columns == 0
    if kind == "inpaint":
        for number, picture in enumerate(PICTURES):
            result = pixels_of(run / "edit" / str(number) / "a.png")
            np.testing.assert_array_equal(result[:, 4:], picture[:, 4:])
            assert (result[:, :4] != picture[:, :4]).any()


@pytest.mark.slow
def test_a_job_goes_on_and_another_replaces_it(run, folder, tiny_config, monkeypatch):
    config = edit_config(tiny_config, folder, sample={"microbatch": 1}, num=4)
    edit(config, run)
    before = {x.name: x.read_bytes() for x in (run / "edit").rglob("*.png")}
    parts = sorted((run / "edit" / "parts").glob("*.npy"))
    parts[0].unlink()
    drawn = []
    whole = Editor.edit_range

    def noted(self, params, sources, options, edit, indices):
        drawn.append(indices)
        return whole(self, params, sources, options, edit, indices)

    monkeypatch.setattr(Editor, "edit_range", noted)
    edit(config, run)
    assert drawn == [range(8)]
    assert {x.name: x.read_bytes() for x in (run / "edit").rglob("*.png")} == before
    edit(dataclasses.replace(config, edit=dataclasses.replace(config.edit, num=1)), run)
    assert {x.name for x in (run / "edit" / "0").iterdir()} == {"a.png"}
    (run / "edit" / "mine.png").write_text("x")
    assert "holds 'mine.png'" in error_of(lambda: edit(config, run))


@pytest.fixture(scope="module")
def model(trained_once):
    return diffussm_jax.load(trained_once)


def test_no_strength_gives_the_image_back(model):
    twice = model.edit(PICTURES, strength=0.0, num=2, sampler="ddim")
    np.testing.assert_array_equal(twice, PICTURES.repeat(2, axis=0))


@pytest.mark.slow
def test_full_strength_samples(model):
    options = {"steps": 2, "sampler": "ddim", "seed": 3}
    classes = [3, 1, 4]
    drawn = model.edit(PICTURES, strength=1.0, classes=classes, **options)
    sampled = model.sample(classes, **options)
    assert np.abs(drawn.astype(int) - sampled).max() <= 1


def test_wrong_arrays_and_options_are_named(model):
    mask = np.zeros((3, 8, 8), bool)

    def line_of(images=PICTURES, kind="inpaint", **options):
        return error_of(lambda: model.edit(images, kind, **options))

    assert "images must be uint8 [num, 8, 8, 1], got uint8 [3, 4, 8, 1]" in line_of(PICTURES[:, :4])
    assert "edit.kind = 'interpolate' needs 2 images" in line_of(PICTURES[:1], "interpolate")
    assert "either edit.rectangle or masks must be given" in line_of()
    assert "either edit.rectangle or masks" in line_of(masks=~mask, rectangle=(0, 0, 2, 2))
    assert "config.edit.rectangle must be None unless edit.kind is inpaint or outpaint" in line_of(
        kind="vary", rectangle=(0, 0, 2, 2)
    )
    assert "classes must be 3, one of each image, got 2" in line_of(kind="vary", classes=[1, 2])
    assert "config.sample.wrap must be None in an edit" in line_of(
        kind="img2img", wrap="x", steps=20
    )
    assert "the mask of image 0 covers nothing" in line_of(masks=mask)
    assert "masks must be bool [3, 8, 8]" in line_of(masks=mask[:2])
    assert "masks must be left out for edit.kind = 'vary'" in line_of(kind="vary", masks=mask)
    assert "config.edit.strength must be at most 1" in line_of(strength=1.5)
    assert "config.edit.target must be below data.num_classes = 10" in line_of(target=10)
    rectangle = "(top, left, height, width) of pixels in an image of 8 x 8, got (4, 0, 5, 8)"
    assert rectangle in line_of(rectangle=(4, 0, 5, 8))
    assert "did you mean 'sample.steps'" in line_of(step=3)
    line = line_of(kind="vary", sampler="ddpm")
    assert "config.sample.sampler must be ddim or heun for edit.kind = 'vary'" in line
    assert "config.sample.eta must be 0 for edit.kind" in line_of(kind="invert", eta=0.5)
    options = {"sampler": "dpm_solver++", "rectangle": (0, 0, 2, 2)}
    assert "config.sample.sampler must be a sampler of single steps" in line_of(**options)
    assert "config.edit.rectangle must be given for edit.kind = 'outpaint'" in line_of(
        kind="outpaint"
    )


def test_a_model_without_classes_has_no_labels(tiny_config):
    for field, value in (("labels", "folders"), ("target", 3)):
        changes = {"data": {"num_classes": 0}, "edit": {field: value}}
        line = error_of(lambda changes=changes: merge(tiny_config, changes))
        assert f"config.edit.{field} must be" in line
    line = error_of(lambda: merge(tiny_config, {"edit": {"classes": (1,)}}))
    assert "config.edit.labels must be 'list' where edit.classes is given" in line


def test_mistakes_in_a_folder_end_in_one_line(folder, tiny_config, tmp_path):
    def line_of(images=folder, **options):
        config = edit_config(tiny_config, images, **{"kind": "inpaint"} | options)
        return error_of(lambda: read_folder(config, None))

    first = folder / "0" / "a.mask.png"
    assert "there is no folder" in line_of(tmp_path / "nowhere")
    save(first, np.zeros((4, 8), np.uint8))
    assert "is 8 x 4 pixels, and its image 8 x 8" in line_of()
    save(first, np.zeros((8, 8), np.uint8))
    assert "has no white in the part" in line_of()
    transparent = np.full((8, 8, 4), 255, np.uint8)
    transparent[2:, ..., 3] = 0
    save(first, transparent)
    assert "is white both where it is transparent and where it is not" in line_of()
    first.write_bytes(b"no image")
    assert "a.mask.png cannot be read" in line_of()
    first.unlink()
    assert "0/a.png has no mask a.mask.png" in line_of()
    assert "is in no folder of a class" in line_of(folder / "1", kind="invert", labels="folders")
    assert "1 images besides masks" in line_of(folder / "1", kind="interpolate")
    shutil.copy(folder / "1" / "a.png", folder / "1" / "a.webp")
    assert "2 images would both be edit/1/a.png" in line_of(kind="vary")
    (folder / "1" / "a.webp").rename(folder / "grid.webp")
    assert "rename grid.webp" in line_of(kind="vary")
    (folder / "grid.webp").write_bytes(b"torn")
    assert "grid.webp cannot be read" in line_of(kind="vary")
    config = merge(tiny_config, {})
    assert "config.edit.images must be given" in error_of(lambda: read_folder(config, None))


@pytest.mark.parametrize("kind", ["16 bits", "alpha", "palette", "colours"])
def test_masks_of_any_form_mean_white(kind, folder, tiny_config):
    """A transparent part is drawn anew too, as other editors have it."""
    white = np.zeros((8, 8), bool)
    white[:, :4] = True
    pixels = {
        "16 bits": np.where(white, 65535, 300).astype(np.uint16),
        "alpha": np.dstack([np.zeros((8, 8, 3), np.uint8), np.where(white, 0, 255)]),
        "palette": np.where(white, 255, 0),
        "colours": np.dstack([np.where(white, 255, 0)] * 3),
    }[kind]
    pixels = pixels if kind == "16 bits" else pixels.astype(np.uint8)
    save(folder / "0" / "a.mask.png", pixels, mode="P" if kind == "palette" else None)
    read = read_folder(edit_config(tiny_config, folder, kind="inpaint"), None)
    np.testing.assert_array_equal(read.sources.masks[0], white)
    np.testing.assert_array_equal(read.sources.images, PICTURES)
    assert read.names == ["0/a", "1/a", "2/a"]


def test_images_of_another_size_and_their_masks_are_cropped_alike(tmp_path, tiny_config):
    picture = np.zeros((24, 40), np.uint8)
    picture[:, 20:] = 255
    save(tmp_path / "a.png", picture)
    save(tmp_path / "a.mask.png", picture)
    read = read_folder(edit_config(tiny_config, tmp_path, kind="inpaint"), None)
    np.testing.assert_array_equal(read.sources.images[0, ..., 0] >= 128, read.sources.masks[0])
    assert read.sources.masks[0].sum() == 32


def test_outpainting_puts_the_image_into_the_rectangle(folder, tiny_config):
    config = edit_config(tiny_config, folder, kind="outpaint", rectangle=(0, 2, 3, 5))
    images, masks, _ = read_folder(config, None).sources
    assert (~masks[0]).sum() == 15
    assert not masks[0, :3, 2:7].any()
    np.testing.assert_array_equal(images[0, 0, :2], images[0, 0, [2, 2]])  # drawn out


def test_neither_results_nor_their_folder_are_images(tmp_path):
    common = ("--config=configs/digits.py", "--mode=edit", f"--workdir={tmp_path}/run")
    for images in (tmp_path, f"{tmp_path}/run/edit"):
        given = f"--config.edit.images={images}"
        line = error_of(lambda given=given: command_line.read(*common, given))
        assert "lies in the folder of" in line


def test_psnr_of_equal_images_is_that_of_rounding():
    np.testing.assert_allclose(psnr(PICTURES, PICTURES), 58.92, atol=0.01)
    off = np.clip(PICTURES, 0, 250) + 5
    np.testing.assert_allclose(psnr(np.clip(PICTURES, 0, 250), off), 34.15, atol=0.01)


@pytest.mark.slow
def test_pixels_outside_a_mask_come_back_through_latents(tiny_autoencoder):
    """Of a rectangle that the autoencoder's factor does not divide too."""
    data = {"space": "latents", "image_size": 16, "channels": 3, "num_classes": 0}
    sections = {"data": data, "autoencoder": {"name": str(tiny_autoencoder), "factor": 2}}
    weights = random_weights(0, **sections)
    mesh = make_mesh(devices=jax.devices()[:2])
    model = TrainedModel(weights, Path("unused"), mesh)
    images = RNG.integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
    options = {"steps": 2, "sampler": "ddim", "jump_length": 1, "resamplings": 2}
    drawn = model.edit(images, "inpaint", rectangle=(3, 5, 7, 2), **options)
    inside = np.zeros((16, 16), bool)
    inside[3:10, 5:7] = True
    np.testing.assert_array_equal(drawn[:, ~inside], images[:, ~inside])
    assert (drawn[:, inside] != images[:, inside]).any()
    latents = TrainedModel(weights, Path("unused"), mesh, latents=True)
    assert "loaded with latents=True cannot edit" in error_of(lambda: latents.edit(images))
    assert model.edit(images, "invert", steps=2, sampler="ddim").shape == images.shape


@pytest.mark.slow
def test_batch_and_devices_change_no_result(tmp_path):
    weights = random_weights(0)
    options = {"steps": 3, "sampler": "ddpm", "rectangle": (0, 0, 8, 4), "resamplings": 2, "num": 3}
    results = []
    for num_devices, batch_size in ((1, 9), (2, 4)):
        mesh = make_mesh(devices=jax.devices()[:num_devices])
        model = TrainedModel(weights, Path("unused"), mesh)
        drawn = model.edit(PICTURES, "inpaint", batch_size=batch_size, jump_length=1, **options)
        results.append(drawn.astype(int))
    assert np.abs(results[0] - results[1]).max() <= 1
    assert (results[0][0] != results[0][1]).any()
