"""Convolutional mixers against loops over places, and what they have in common."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

from diffussm_jax.config import DeltaGate, ModelConfig
from diffussm_jax.config.parsing import ConfigError
from diffussm_jax.models.layers import modulate
from diffussm_jax.models.mixers.convnext import ConvNeXt
from diffussm_jax.models.mixers.delta_conv import DeltaConv, upsample
from diffussm_jax.models.mixers.dico import DiCo
from diffussm_jax.ops.depthwise import convolve
from diffussm_jax.training.state import abstract_model
from tests.models.tiny import assert_gradients_reach_all, tiny
from tests.ops.test_depthwise import by_loop

MIXERS = {"delta_conv": DeltaConv, "convnext": ConvNeXt, "dico": DiCo}
DIT = {"name": "dit", "num_heads": 4}
GRID = HEIGHT, WIDTH = 4, 6
D = 8


def mixer_of(name, *, randomize=True, **options):
    """A mixer of random parameters: GRN's are zero at the start."""
    config = ModelConfig(**{"name": "dit", "width": D, "dtype": "float32"} | options)
    mixer = MIXERS[name](config, convolve=convolve, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)
    for _, param in nnx.to_flat_state(nnx.state(mixer, nnx.Param)):
        if randomize:
            param[...] = param[...] + 0.3 * rng.normal(size=param.shape).astype(np.float32)
    return mixer


def unmodulated(x):
    return x


def run(mixer, x, grid=GRID, modulate=unmodulated):
    return jax.jit(lambda x: mixer(x, grid, modulate))(x)


def tokens(height=HEIGHT, width=WIDTH, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(2, height * width, D)), dtype)


def dense(layer, x):
    return x @ np.float64(layer.kernel[...]) + np.float64(layer.bias[...])


def interpolated(place, axis_size):
    """The two nearest squares along an axis and their weights, for a place in squares."""
    low = math.floor(place)
    for square, weight in ((low, 1 - (place - low)), (low + 1, place - low)):
        yield min(max(square, 0), axis_size - 1), weight


def upsampled_by_loop(y, factor):
    b, h, w, c = y.shape
    result = np.zeros((b, factor * h, factor * w, c))
    for i, j in np.ndindex(factor * h, factor * w):
        for row, a in interpolated((i + 0.5) / factor - 0.5, h):
            for column, e in interpolated((j + 0.5) / factor - 0.5, w):
                result[:, i, j] += a * e * y[:, row, column]
    return result


GATES = {
    "scaled": lambda value, gate: value * gate / math.sqrt(D / 4),
    "released": lambda value, gate: value * gate / (D / 4) ** -0.5,
    "sigmoid": lambda value, gate: value / (1 + np.exp(-gate)),
}


@pytest.mark.parametrize("gate", GATES)
def test_delta_conv_is_a_loop_over_stages_and_places(gate: DeltaGate):
    mixer, x = mixer_of("delta_conv", delta_gate=gate, kernel_size=3), tokens()
    u = dense(mixer.narrow, np.float64(x)).reshape(2, *GRID, D // 2)
    stages = []
    for factor, layer in ((1, mixer.stage_0), (2, mixer.stage_1)):
        h, w = HEIGHT // factor, WIDTH // factor
        pooled = np.zeros((2, h, w, D // 2))
        for i, j in np.ndindex(HEIGHT, WIDTH):
            pooled[:, i // factor, j // factor] += u[:, i, j] / factor**2
        y = by_loop(pooled, layer.kernel[...])
        stages.append(upsampled_by_loop(GATES[gate](y[..., : D // 4], y[..., D // 4 :]), factor))
    y = dense(mixer.out, np.concatenate(stages, axis=-1)).reshape(2, -1, D)
    expected = y + dense(mixer.mean, np.float64(x).mean(axis=1, keepdims=True))
    np.testing.assert_allclose(run(mixer, x), expected, atol=1e-4)


def test_convnext_is_a_loop_over_places_and_channels():
    mixer, x = mixer_of("convnext", kernel_size=3, modulate_convolved=True), tokens()
    modulation = np.random.default_rng(2).normal(size=(2, 2, 1, D)).astype(np.float32)
    y = by_loop(np.float64(x).reshape(2, *GRID, D), mixer.depthwise.kernel[...])
    y = y.reshape(2, -1, D) + np.float64(mixer.depthwise.bias[...])
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
    y = y * (1 + modulation[1]) + modulation[0]
    hidden = np.float64(jax.nn.gelu(jnp.float32(dense(mixer.widen, y))))
    normed = np.zeros(hidden.shape)
    scale, bias = (np.float64(x[...]) for x in (mixer.norm.scale, mixer.norm.bias))
    for image in range(2):
        norms = np.array([np.linalg.norm(hidden[image, :, c]) for c in range(3 * D)])
        response = norms / norms.mean()
        normed[image] = scale * hidden[image] * response + bias + hidden[image]
    shift, scale = jnp.asarray(modulation)
    modulated = run(mixer, x, modulate=lambda rows: modulate(rows, shift, scale))
    np.testing.assert_allclose(modulated, dense(mixer.out, normed), atol=3e-4)


def test_dico_is_a_loop_over_places():
    mixer, x = mixer_of("dico"), tokens()
    y = by_loop(dense(mixer.enter, np.float64(x)).reshape(2, *GRID, D), mixer.depthwise.kernel[...])
    y = y.reshape(2, -1, D) + np.float64(mixer.depthwise.bias[...])
    y = np.float64(jax.nn.gelu(jnp.float32(y)))
    gate = 1 / (1 + np.exp(-dense(mixer.gate, y.mean(axis=1, keepdims=True))))
    np.testing.assert_allclose(run(mixer, x), dense(mixer.out, y * gate), atol=1e-4)


@pytest.mark.parametrize("factor", [2, 3])
def test_upsampling_is_half_pixel_interpolation(factor):
    y = np.random.default_rng(0).normal(size=(1, 3, 2, 2))
    ours = upsample(jnp.asarray(y, jnp.float32), factor)
    np.testing.assert_allclose(ours, upsampled_by_loop(y, factor), atol=1e-6)
    assert upsample(jnp.asarray(y, jnp.bfloat16), factor).dtype == jnp.bfloat16


@pytest.mark.parametrize("name", MIXERS)
def test_a_shifted_image_gives_a_shifted_output(name):
    """Where no kernel reaches the edge: an image amid zeros, moved by a square of the pyramid.

    Biases let the edge reach three tokens far, through a kernel and the interpolation.
    """
    mixer = mixer_of(name, kernel_size=3)
    image = np.zeros((1, 12, 12, D), np.float32)
    image[:, 4:7, 4:6] = np.random.default_rng(0).normal(size=(1, 3, 2, D))
    images = np.concatenate([image, np.roll(image, (2, 2), axis=(1, 2))])
    y = run(mixer, images.reshape(2, 144, D), (12, 12)).reshape(2, 12, 12, D)
    np.testing.assert_allclose(y[1, 5:9, 5:9], y[0, 3:7, 3:7], atol=1e-5)


@pytest.mark.parametrize("name", MIXERS)
def test_bfloat16_is_near_float32(name):
    expected = run(mixer_of(name), tokens())
    y = run(mixer_of(name, dtype="bfloat16"), tokens(dtype=jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert jnp.linalg.norm(y - expected) < 0.03 * jnp.linalg.norm(expected)


@pytest.mark.parametrize("name", MIXERS)
def test_the_tangent_is_the_slope_also_where_a_channel_is_zero(name):
    mixer, x = mixer_of(name), tokens().at[..., 0].set(0)
    v = jnp.sin(3 * x)

    @jax.jit
    def both():
        along = functools.partial(mixer, grid=GRID, modulate=unmodulated)
        slope = (along(x + 1e-2 * v) - along(x - 1e-2 * v)) / 2e-2
        return jax.jvp(along, (x,), (v,))[1], slope

    tangent, slope = both()
    assert jnp.linalg.norm(tangent - slope) < 2e-3 * jnp.linalg.norm(slope)


def test_response_normalisation_of_nothing_has_a_gradient():
    mixer = mixer_of("convnext")
    gradient = jax.jit(jax.grad(lambda x: mixer.norm(x).sum()))(jnp.zeros((1, 4, 3 * D)))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", MIXERS)
def test_gradients_reach_every_parameter(name):
    graphdef, params = nnx.split(mixer_of(name, kernel_size=3), nnx.Param)

    def total(params):
        return jnp.square(nnx.merge(graphdef, params)(tokens(), GRID, unmodulated)).sum()

    gradients = jax.jit(jax.grad(total))(nnx.to_pure_dict(params))
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all() and np.all(gradient != 0), path


@pytest.mark.slow
def test_gradients_reach_every_parameter_of_a_model():
    assert_gradients_reach_all(tiny(**DIT, mixers=tuple(MIXERS), depth=len(MIXERS)))


def test_names_of_parameters_say_the_mixer():
    names = flatten_dict(abstract_model(tiny(**DIT, mixer="delta_conv"))[1], sep=".")
    assert names["blocks.delta_conv.stage_1.kernel"].shape == (2, 13, 13, 1, 8)
    assert names["blocks.delta_conv.out.kernel"].shape == (2, 8, 16)
    assert "blocks.delta_conv.stage_1.bias" not in names
    names = flatten_dict(abstract_model(tiny(**DIT, mixer="convnext"))[1], sep=".")
    assert names["blocks.convnext.depthwise.kernel"].shape == (2, 7, 7, 1, 16)
    assert names["blocks.convnext.norm.scale"].shape == (2, 48)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"kernel_size": 4}, "model.kernel_size must be odd, got 4"),
        ({"pyramid": (1, 3)}, r"model.pyramid must divide the 8 x 8 grid of tokens, got \(1, 3\)"),
        ({"patch_size": 4, "pyramid": (1, 4)}, "model.pyramid must divide the 2 x 2 grid"),
        ({"pyramid": ()}, "model.pyramid must not be empty"),
        ({"delta_gate": "tanh"}, "model.delta_gate must be one of"),
    ],
)
def test_what_does_not_fit_ends_in_a_line(options, line):
    with pytest.raises(ConfigError, match=line):
        tiny(**DIT | {"mixer": "delta_conv"} | options)
