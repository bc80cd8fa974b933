"""Folders as people have them: which files are images, and that every mode reads them alike."""

import io
import logging
import os
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from diffussm_jax.config import from_dict
from diffussm_jax.data import formats, image_files
from diffussm_jax.data.image_files import find_images
from diffussm_jax.data.sources import open_images
from diffussm_jax.evaluate import evaluate
from diffussm_jax.evaluation.image_sets import FileImages, SourceImages
from diffussm_jax.refstats import refstats
from tests.disks import disk_of
from tests.fuzz.one_line import error_of

SIZE = 8
CAFE = os.fsdecode(b"caf\xe9")  # in Latin-1, as file systems of before have it


def picture(seed=0, *, size=SIZE):
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    return Image.fromarray(pixels)


def save(path, seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed).save(path, **options)


def names(folder):
    found = find_images(folder, field="config.data.name")
    return [str(path.relative_to(folder)) for path in found.paths], found.left_out


def config_of(folder, tmp_path, **data):
    values = {
        "name": f"folder:{folder}",
        "data_dir": str(tmp_path / "tfds"),
        "image_size": SIZE,
        "channels": 3,
        "num_classes": 0,
        "eval_split": None,
    }
    evaluate = {"features": "pixels", "images": str(folder), "batch_size": 16}
    return from_dict({"data": values | data, "evaluate": evaluate})


def test_what_desktops_and_notebooks_leave_is_no_image(tmp_path):
    folder = tmp_path / "images"
    for name in (
        "cat/0.png",
        "cat/.ipynb_checkpoints/0.png",
        ".thumbnails/0.png",
        "cat/@eaDir/0.png",
        "__MACOSX/cat/0.png",
        "_background/1.png",
    ):
        save(folder / name)
    (folder / "cat" / "._0.png").write_bytes(b"of a Mac")
    (folder / "cat" / "Thumbs.db").write_bytes(b"of Windows")
    assert names(folder) == (["_background/1.png", "cat/0.png"], Counter())
    source = open_images(config_of(folder, tmp_path, num_classes=2), "train")
    assert source.facts["class_names"] == ["_background", "cat"]


def test_what_pillow_opens_is_taken_and_the_rest_is_named(tmp_path, caplog):
    taken = ("a.avif", "a.jp2", "a.JPE", "a.jfif", "a.png", "a.tif", "a.tga")
    for name in taken:
        save(tmp_path / name)
    for name in ("a.heic", "b.HEIC", "a.dng", "notes.txt", "page.psd", "scan.pdf", "Makefile"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".a.png").write_bytes(b"x")
    with caplog.at_level(logging.INFO, "diffussm_jax"):
        found, left_out = names(tmp_path)
        names(tmp_path)  # of the held-out split
    assert found == sorted(taken)
    assert left_out.total() == 8
    assert caplog.text.count(f"7 images in {tmp_path}; left out 8: ") == 1
    for text in ("2 .heic (pip install pillow-heif)", "1 .dng (a camera's raw file", "1 .txt"):
        assert text in caplog.text


def test_a_plug_in_of_pillow_adds_its_suffixes(tmp_path, monkeypatch):
    """As pillow_heif does where it is installed."""
    monkeypatch.setitem(Image.EXTENSION, ".heic", "HEIF")
    formats.suffixes.cache_clear()
    try:
        (tmp_path / "a.heic").write_bytes(b"x")
        assert names(tmp_path) == (["a.heic"], Counter())
    finally:
        formats.suffixes.cache_clear()


def test_links_are_followed_but_not_in_circles(tmp_path):
    folder, elsewhere = tmp_path / "images", tmp_path / "elsewhere"
    save(elsewhere / "deep" / "1.png")
    save(folder / "cat" / "0.png")
    (folder / "dog").symlink_to(elsewhere)
    (folder / "cat" / "2.png").symlink_to(elsewhere / "deep" / "1.png")
    (folder / "cat" / "circle").symlink_to(folder)
    (folder / "cat" / "up").symlink_to(tmp_path)
    (folder / "cat" / "gone.png").symlink_to(tmp_path / "gone.png")
    found, left_out = names(folder)
    assert found == ["cat/0.png", "cat/2.png", "dog/deep/1.png"]
    assert left_out == {"linked to a folder around it": 2, "linked to nothing": 1}


def test_names_that_are_not_utf_8(tmp_path):
    folder = tmp_path / CAFE
    save(folder / CAFE / f"{CAFE}.png", format="PNG")
    (folder / CAFE / "torn.png").write_bytes(b"")
    config = config_of(folder, tmp_path, num_classes=1)
    source = open_images(config, "train")
    assert source.facts["class_names"] == ["caf\\xe9"]
    assert source.example(0)["image"].shape == (SIZE, SIZE, 3)
    assert "(caf\\xe9/torn.png): the file is empty" in error_of(lambda: source.example(1))
    images = FileImages(folder / CAFE, config.data)
    assert images.facts()["folder"] == "caf\\xe9"
    assert r"caf\xe9/torn.png cannot be read" in error_of(lambda: images.read(np.array([1])))


def save_all_kinds(folder):
    """Files that are read wrongly by whoever reads them in the simplest way."""
    grey = np.random.default_rng(0).integers(0, 65536, (SIZE, SIZE)).astype(np.uint16)
    Image.fromarray(grey).save(folder / "16 bits.png")
    exif = Image.Exif()
    exif[274] = 6  # orientation: turn by 90 degrees
    save(folder / "turned.jpg", 1, exif=exif)
    clear = picture(2).convert("RGBA")
    clear.putalpha(100)
    clear.save(folder / "clear.png")
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 3_000_000, zip=True)
    save(folder / "text.png", 3, pnginfo=text)
    save(folder / "profile.png", 4, icc_profile=bytes(3_000_000))
    for index in range(5):
        save(folder / f"{index}.tif", index)


def test_scoring_reads_a_folder_as_training_does(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    save_all_kinds(folder)
    config = config_of(folder, tmp_path)
    scored, trained = FileImages(folder, config.data), SourceImages(config, "train")
    assert len(scored) == len(trained) == 10
    rows = np.arange(10)
    np.testing.assert_array_equal(scored.read(rows), trained.read(rows))
    refstats(config, tmp_path / "run")
    evaluate(config, tmp_path / "run")
    result = (tmp_path / "run" / "evaluation" / "default.json").read_text()
    assert '"precision": 1.0' in result


def test_the_colours_of_a_folder_are_not_dropped_silently(tmp_path, caplog):
    save(tmp_path / "0.png")
    images = FileImages(tmp_path, config_of(tmp_path, tmp_path, channels=1).data)
    assert "are scored as grey: config.data.channels = 1" in caplog.text
    grey = np.asarray(picture().convert("L"))
    np.testing.assert_array_equal(images.read(np.array([0]))[0, ..., 0], grey)


PAGE = b"<!DOCTYPE html><title>404</title>"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (PAGE, "no image that Pillow reads, .*: b'<!DOCTYPE ht'"),
        (b"", "the file is empty"),
        (None, "max_pixels = 63"),
    ],
)
def test_reasons_are_plain_in_every_mode(tmp_path, data, reason):
    file = io.BytesIO()
    picture().save(file, "PNG")
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "0.jpg").write_bytes(file.getvalue() if data is None else data)
    config = config_of(folder, tmp_path, max_pixels=63)
    for read in (
        lambda: open_images(config, "train").example(0),
        lambda: FileImages(folder, config.data).read(np.array([0])),
    ):
        error = error_of(read)
        assert re.search(reason, error)
        assert "BytesIO" not in error


def test_a_disk_that_fills_while_a_folder_is_prepared(tmp_path):
    for index in range(20):
        image = np.random.default_rng(index).integers(0, 256, (150, 150, 3), np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "images" / f"{index}.png")
    with disk_of(tmp_path / "tfds", megabytes=1):
        error = error_of(lambda: open_images(config_of(tmp_path / "images", tmp_path), "train"))
    assert "config.data.data_dir: " in error
    assert "No space left on device" in error


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    """Also while it is prepared, where only the writing was thought of."""
    folder = tmp_path / "images"
    save(folder / "0.png")

    def fail(*_):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.read_bytes", fail)
        for read in (
            lambda: open_images(config_of(folder, tmp_path), "train"),
            lambda: FileImages(folder, config_of(folder, tmp_path).data).read(np.array([0])),
        ):
            assert "images/0.png cannot be read: Input/output error" in error_of(read)
    monkeypatch.setattr(image_files.os, "scandir", fail)
    error = error_of(lambda: find_images(folder, field="config.evaluate.images"))
    assert "config.evaluate.images: " in error
    assert "cannot be read: Input/output error" in error
