"""Features do not depend on devices or batches, and images come in the order asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffussm_jax.evaluation.features import Extractor, stream
from diffussm_jax.evaluation.image_sets import ArrayImages, DrawnImages, NpzImages
from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.sampling.job import draw_to


def extractor():
    weight = np.random.default_rng(1).normal(size=(48, 5)).astype(np.float32)
    return Extractor(lambda w, x: {"pool": jnp.tanh(x.reshape(len(x), -1) / 255 @ w)}, weight, {})


def images(num):
    return np.random.default_rng(0).integers(0, 256, (num, 4, 4, 3), dtype=np.uint8)


@pytest.mark.parametrize("num_devices", [1, 2, 8])
@pytest.mark.parametrize("batch_size", [5, 64])
def test_features_are_those_of_each_image(num_devices, batch_size):
    pixels, mesh = images(21), make_mesh(devices=jax.devices()[:num_devices])
    source, own = ArrayImages(pixels, facts={}), extractor()
    batches = stream(own, source, mesh, batch_size=batch_size)
    actual = np.concatenate([x["pool"] for x in batches])
    expected = np.tanh(pixels.reshape(21, -1) / np.float32(255) @ own.params)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_drawn_images_are_read_across_their_files(tmp_path):
    samples = draw_to(
        tmp_path,
        lambda indices: images(21)[indices.start : indices.stop],
        num=21,
        range_size=4,
        facts={"of": "a test"},
        labels=np.arange(21) % 10,
    )
    drawn = DrawnImages(samples)
    for rows in (np.arange(3, 14), np.array([20, 20]), np.arange(21)):
        np.testing.assert_array_equal(drawn.read(rows), images(21)[rows])
    np.testing.assert_array_equal(drawn.labels, np.arange(21) % 10)
    assert drawn.facts() == {"of": "a test"}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_is_read_in_parts(tmp_path, save):
    save(tmp_path / "x.npz", images(21), np.arange(21))
    npz = NpzImages(tmp_path / "x.npz")
    for rows in (np.arange(5), np.arange(9, 14), np.array([20, 20])):
        np.testing.assert_array_equal(npz.read(rows), images(21)[rows])
    assert len(npz) == len(npz.labels) == 21
