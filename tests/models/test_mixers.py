"""The mixers of a DiT's block, one by one and in patterns."""

import operator
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

from diffussm_jax.config import MixerName, ModelConfig
from diffussm_jax.config.parsing import ConfigError
from diffussm_jax.models.mixers import Functions, Mixer, create_mixer
from diffussm_jax.models.mixers.s4d import S4DMixer, transpose
from diffussm_jax.ops.attention import attention
from diffussm_jax.ops.depthwise import convolve
from diffussm_jax.ops.s4d import s4d
from diffussm_jax.planning.multiply_adds import multiply_adds
from diffussm_jax.training.state import abstract_model
from tests.models.test_convolutional_mixers import unmodulated
from tests.models.tiny import (
    assert_gradients_reach_all,
    assert_same_on_a_mesh,
    inputs,
    randomized,
    tiny,
)

GRID = HEIGHT, WIDTH = 2, 3
D = 4
DIT = {"name": "dit", "num_heads": 4}
HYBRID = DIT | {"depth": 4, "mixers": ("s4d", "attention")}


def tokens(seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(2, HEIGHT * WIDTH, D)), jnp.float32)


def s4d_mixer(**options):
    config = ModelConfig(name="dit", width=D, state_size=4, dtype="float32", **options)
    return S4DMixer(config, apply_s4d=s4d, rngs=nnx.Rngs(0))


def filtered(u, ssm, channel, direction):
    """The SSM of a channel and a direction on a sequence of numbers, step by step in complex128."""
    dt = np.exp(np.float64(ssm.log_dt[...][direction, channel]))
    a = -np.exp(np.float64(ssm.log_neg_a_re[...][direction, channel])) + 1j * np.float64(
        ssm.a_im[...][direction, channel]
    )
    b, c = (np.float64(x[...][direction, channel]) @ [1, 1j] for x in (ssm.b, ssm.c))
    pole, state, y = np.exp(dt * a), np.zeros(a.shape, complex), np.zeros(len(u))
    order = range(len(u)) if direction == 0 else range(len(u) - 1, -1, -1)
    for l in order:
        state = pole * state + (pole - 1) / a * b * u[l]
        y[l] = 2 * np.real(c @ state) + np.float64(ssm.skip[...][direction, channel]) * u[l]
    return y


@pytest.mark.parametrize("scan_orders", ["rows", "columns", "both"])
def test_s4d_is_a_loop_over_orders_directions_and_channels(scan_orders):
    mixer, x = s4d_mixer(scan_orders=scan_orders), tokens()
    u, z = np.split(np.float64(mixer.uz(x)), 2, axis=-1)
    by_rows = np.arange(HEIGHT * WIDTH)
    by_columns = by_rows.reshape(GRID).T.reshape(-1)
    orders = {"rows": [by_rows], "columns": [by_columns], "both": [by_rows, by_columns]}
    y = np.zeros((2, HEIGHT * WIDTH, 2, D))
    for number, order in enumerate(orders[scan_orders]):
        for image, direction, channel in np.ndindex(2, 2, D):
            signal = u[image, order, channel]
            y[image, order, direction, channel] += filtered(
                signal, mixer.ssm, number * D + channel, direction
            )
    gated = y * (z / (1 + np.exp(-z)))[:, :, None]
    expected = gated.reshape(2, HEIGHT * WIDTH, -1) @ np.float64(mixer.out.kernel[...])
    np.testing.assert_allclose(mixer(x, GRID, unmodulated), expected, atol=1e-5)


def test_columns_are_the_rows_of_the_transposed_image():
    x = tokens()
    rows, columns = (s4d_mixer(scan_orders=orders) for orders in ("rows", "columns"))
    transposed = rows(transpose(x, GRID), (WIDTH, HEIGHT), unmodulated)
    np.testing.assert_allclose(
        columns(x, GRID, unmodulated), transpose(transposed, (WIDTH, HEIGHT)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("options", [{"mixer": "s4d"}, {"depth": 4, "mixers": HYBRID["mixers"]}])
def test_gradients_reach_every_parameter(options):
    assert_gradients_reach_all(tiny(**DIT | options))


def test_a_pattern_is_its_blocks_one_after_another():
    graphdef, params = randomized(tiny(**HYBRID))
    model = nnx.merge(graphdef, params)
    x, c = model.enter(*inputs())
    expected = x
    for repetition in range(2):
        pattern = jax.tree.map(operator.itemgetter(repetition), model.blocks)
        assert (pattern.layer_0.mixer_name, pattern.layer_1.mixer_name) == HYBRID["mixers"]
        expected = pattern.layer_1(pattern.layer_0(expected, c, (8, 8)), c, (8, 8))
    np.testing.assert_allclose(model.run_blocks(x, c, (8, 8)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", get_args(MixerName))
def test_every_mixer_modulates_its_input_once(name):
    functions = Functions(attention, s4d, convolve)
    config = ModelConfig(name="dit", width=D, num_heads=2, state_size=4, dtype="float32")
    mixer, calls = create_mixer(name, config, functions=functions, rngs=nnx.Rngs(0)), []
    assert isinstance(mixer, Mixer)
    x, grid = jnp.concatenate([tokens(), tokens(1)], axis=1), (2, 6)

    def modulate(rows):
        calls.append(rows)
        return 2 * rows + 1

    np.testing.assert_array_equal(mixer(x, grid, modulate), mixer(2 * x + 1, grid, unmodulated))
    assert len(calls) == 1


def test_names_of_parameters_say_the_mixer():
    names = flatten_dict(abstract_model(tiny(**HYBRID))[1], sep=".")
    assert names["blocks.layer_0.s4d.uz.kernel"].shape == (2, 16, 32)
    assert names["blocks.layer_1.attention.qkv.kernel"].shape == (2, 16, 48)
    alone = flatten_dict(abstract_model(tiny(**DIT, mixer="s4d"))[1], sep=".")
    assert alone["blocks.s4d.ssm.log_dt"].shape == (2, 2, 32)  # layers, directions, both orders


def test_s4d_costs_the_dense_multiply_adds_of_attention():
    counts = {mixer: multiply_adds(tiny(**DIT, mixer=mixer)) for mixer in ("attention", "s4d")}
    assert counts["s4d"].dense == counts["attention"].dense == 2 * (12 * 64 + 6) * 16**2
    assert counts["s4d"].attention == counts["attention"].ssm == 0
    assert counts["s4d"].ssm > 0


@pytest.mark.slow
def test_on_a_mesh_it_is_what_one_device_computes():
    assert_same_on_a_mesh(tiny(**HYBRID), rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"mixers": ("s4d", "attention", "s4d")}, "model.mixers must divide model.depth = 2"),
        ({"name": "diffussm", "mixer": "s4d"}, "model.mixer must be 'attention' for model.name"),
        ({"mixer": "s4d", "mixers": ("s4d", "attention")}, "model.mixers must be None"),
        ({"mixer": "mamba"}, "model.mixer must be one of"),
        ({"mixers": ()}, "model.mixers must not be empty"),
    ],
)
def test_what_does_not_fit_ends_in_a_line(options, line):
    with pytest.raises(ConfigError, match=line):
        tiny(**DIT | options)
