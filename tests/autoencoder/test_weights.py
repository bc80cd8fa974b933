"""Published autoencoders: what is right loads, and what is wrong is named.

Their values are compared in tests/parity.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffussm_jax.autoencoder.network import AutoencoderKL, AutoencoderKLConfig
from diffussm_jax.autoencoder.weights import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    find_autoencoder,
    load_autoencoder,
    save_autoencoder,
)
from diffussm_jax.errors import UserError
from examples.photos import random_autoencoder

CONFIG = AutoencoderKLConfig(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4)


@pytest.fixture(scope="module")
def model():
    return random_autoencoder(CONFIG)


@pytest.fixture
def folder(model, tmp_path):
    save_autoencoder(model, tmp_path)
    return tmp_path


def test_what_is_written_is_read(model, folder):
    assert find_autoencoder(str(folder)) == folder
    loaded = load_autoencoder(folder)
    assert loaded.config == CONFIG
    jax.tree.map(
        np.testing.assert_array_equal,
        nnx.to_pure_dict(nnx.state(loaded, nnx.Param)),
        nnx.to_pure_dict(nnx.state(model, nnx.Param)),
    )


def test_shapes_and_slices(model):
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (3, 8, 12, 3)))
    mean, std = jax.jit(lambda x: model.encode(x))(images)
    assert mean.shape == std.shape == (3, 8 // CONFIG.factor, 12 // CONFIG.factor, 4)
    whole = jax.jit(lambda z: model.decode(z))(mean)
    assert whole.shape == images.shape
    sliced = jax.jit(lambda z: model.decode(z, slice_size=2))(mean)
    np.testing.assert_allclose(sliced, whole, atol=2e-5)


def test_the_default_is_stable_diffusions():
    model = jax.eval_shape(lambda: AutoencoderKL(AutoencoderKLConfig(), rngs=nnx.Rngs(0)))
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(leaf.size for leaf in leaves) == 83_653_863


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / WEIGHTS_FILE).unlink(), f"{WEIGHTS_FILE} cannot be read"),
        (
            lambda folder: (folder / WEIGHTS_FILE).write_bytes(b"1234567890"),
            f"{WEIGHTS_FILE} cannot be read",
        ),
        (lambda folder: (folder / CONFIG_FILE).write_text("{"), f"{CONFIG_FILE} is damaged"),
        (lambda folder: edit(folder, act_fn="relu"), "act_fn = 'relu' is not supported"),
        (lambda folder: edit(folder, latent_channels=16), "has shape .*, wanted"),
        (
            lambda folder: edit(folder, block_out_channels=[8]),
            "has weights of another model|has shape|has no",
        ),
        (
            lambda folder: edit(folder, block_out_channels=None),
            "block_out_channels must be a tuple",
        ),
        (lambda folder: edit(folder, layers_per_block=2), "has no decoder.up_blocks"),
    ],
)
def test_damage_is_named_in_one_line(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message) as error:
        load_autoencoder(str(folder))
    assert "\n" not in str(error.value)


def edit(folder, **changes):
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_without_a_network_the_files_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(UserError, match=f"put its {CONFIG_FILE} and {WEIGHTS_FILE}"):
        find_autoencoder("no/such-autoencoder")
