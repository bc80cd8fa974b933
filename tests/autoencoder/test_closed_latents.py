"""Latents that are closed along an axis become pixels that are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffussm_jax.autoencoder.on_mesh import Autoencoder
from diffussm_jax.autoencoder.weights import save_autoencoder
from diffussm_jax.config import from_dict
from diffussm_jax.data.transforms import to_uint8
from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.sampling.generator import Generator
from diffussm_jax.training.state import abstract_model, init_params
from examples.photos import AUTOENCODER, random_autoencoder
from tests.conftest import TINY_MODEL

SIDE, FACTOR = 4, AUTOENCODER.factor


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("autoencoder")
    save_autoencoder(random_autoencoder(AUTOENCODER), folder)
    data = {"space": "latents", "image_size": SIDE * FACTOR, "channels": 3}
    sample = {"num": 2, "batch_size": 2, "sampler": "ddim", "steps": 20, "wrap": "xy"}
    values = {"data": data, "autoencoder": {"name": str(folder)}, "sample": sample}
    return from_dict(values | {"model": TINY_MODEL})


@pytest.fixture(scope="module")
def autoencoder(config):
    return Autoencoder(config, make_mesh(devices=jax.devices()[:1]))


@pytest.fixture(scope="module")
def latents():
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, SIDE, SIDE, 4)), jnp.float32)


@pytest.mark.slow
def test_the_decoder_sees_no_farther_than_its_reach(latents):
    """Two equal places of a repeated latent, each its reach from an end, have equal pixels."""
    reach = AUTOENCODER.decoder_reach
    around = ((0, 0), (0, 0), (reach, reach + 1), (0, 0))
    model = random_autoencoder(AUTOENCODER)
    graphdef, params = nnx.split(model, nnx.Param)
    decode = jax.jit(lambda params, z: nnx.merge(graphdef, params).decode(z))
    pixels = decode(params, jnp.pad(latents[:1], around, mode="wrap"))
    first, last = (pixels[:, :, start * FACTOR :][:, :, :FACTOR] for start in (reach, reach + SIDE))
    assert pixels.std() > 0.1
    np.testing.assert_allclose(first, last, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("closed", [(True, False), (False, True)])
def test_rolled_latents_are_rolled_pixels(autoencoder, latents, closed):
    """Nearly so: the norms and attention weigh what lies beyond the edges anew."""
    axis = 1 if closed[0] else 2

    def error(closed):
        pixels = autoencoder.decode(latents, closed)
        assert pixels.shape == (2, SIDE * FACTOR, SIDE * FACTOR, 3)
        rolled = autoencoder.decode(jnp.roll(latents, 2, axis), closed)
        return float(jnp.abs(jnp.roll(rolled, -2 * FACTOR, axis) - pixels).mean())

    assert error(closed) < 0.3 * error((False, False))


@pytest.mark.slow
def test_tiles_are_drawn_and_decoded(config, autoencoder):
    """The pixels are those of the latents that are drawn, as closed ones."""
    mesh = make_mesh(devices=jax.devices()[:1])
    graphdef, _ = abstract_model(config, mesh)
    params, options = init_params(config), config.sample
    images, latents = (
        Generator(config, graphdef, mesh, decode).draw(params, options)[0]
        for decode in (autoencoder.decode, None)
    )
    scaled = jnp.asarray(latents, jnp.float32) * config.autoencoder.scale
    for closed, is_same in (((True, True), True), ((False, False), False)):
        decoded = to_uint8(np.asarray(autoencoder.decode(scaled, closed))).astype(int)
        assert (np.abs(decoded - images).max() <= 2) == is_same
