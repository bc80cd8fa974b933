"""LSUN from the official LMDB: read as it is, and named where it is damaged or missing."""

import io
import re

import lmdb
import numpy as np
import pytest
import skimage.data
from PIL import Image

from diffussm_jax.data.datasets.lsun import lsun_dataset_builder
from diffussm_jax.data.sources import open_images
from diffussm_jax.data.transforms import centre_crop
from diffussm_jax.errors import UserError
from tests.data.test_sources import SIZE, config_of
from tests.fuzz.one_line import error_of


@pytest.fixture
def lsun(tmp_path, monkeypatch):
    """The official layout, small: WebP files under hashed keys."""
    photos = [skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket()]
    manual = tmp_path / "tfds" / "downloads" / "manual"
    for part, images in (("train", photos), ("val", photos[:1])):
        path = manual / f"church_outdoor_{part}_lmdb"
        path.mkdir(parents=True)
        with lmdb.open(str(path), map_size=2**22) as database, database.begin(write=True) as t:
            for index, image in enumerate(images):
                file = io.BytesIO()
                Image.fromarray(image).save(file, format="WEBP", lossless=True)
                t.put(f"{index:040x}".encode(), file.getvalue())
    return photos


def test_lsun_is_read_from_the_official_lmdb(lsun, tmp_path):
    config = config_of("lsun/church_outdoor", tmp_path)
    source = open_images(config, "train")
    assert len(source) == 3
    assert len(open_images(config, "validation")) == 1
    for index, photo in enumerate(lsun):
        expected = centre_crop(Image.fromarray(photo), (SIZE, SIZE))
        np.testing.assert_array_equal(source.example(index)["image"], expected)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "is not complete: it has .* of .* bytes; unzip it"),
        (lambda data: data[:8192] + bytes(len(data) - 8192), "cannot be read: .*; unzip it again"),
        (lambda data: b"", "cannot be read: .*; unzip it again"),
    ],
)
def test_a_damaged_lsun_is_named(lsun, tmp_path, damage, message):
    """Half of the file was a bus error: LMDB maps what its header says."""
    path = tmp_path / "tfds" / "downloads" / "manual" / "church_outdoor_train_lmdb" / "data.mdb"
    path.write_bytes(damage(path.read_bytes()))
    error = error_of(lambda: open_images(config_of("lsun/church_outdoor", tmp_path), "train"))
    assert re.search(message, error)


def test_lsun_that_is_not_there_says_where_to_get_it(tmp_path):
    with pytest.raises(
        UserError,
        match=r"bedroom_train_lmdb/data.mdb is missing: download http\S+bedroom_train_lmdb.zip "
        "and unzip it in",
    ):
        open_images(config_of("lsun/bedroom", tmp_path), "train")
    with pytest.raises(UserError, match="no category 'church'; it has bedroom, "):
        lsun_dataset_builder.open_builder("church")
