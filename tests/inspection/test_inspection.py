"""What is said of maps, filters, mixers and replaced layers, against closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffussm_jax.config import from_dict
from diffussm_jax.diffusion import create_process
from diffussm_jax.inspection import filters, maps
from diffussm_jax.inspection.geometry import (
    lag_squares,
    middle,
    positions,
    root_mean_square,
    spread,
    square_distances,
    window,
)
from diffussm_jax.inspection.inputs import CleanImages, noised, time_of
from diffussm_jax.inspection.perturbation import KINDS, make_error, replaced
from diffussm_jax.inspection.sensitivity import sensitivity, summary
from diffussm_jax.inspection.walk import Mixing, layers, mixing_of, walk
from diffussm_jax.ops.s4d import s4d
from diffussm_jax.shapes import SSM
from diffussm_jax.training.state import abstract_model, init_params
from tests.models.tiny import randomized

MODELS = {
    "diffussm": {"name": "diffussm", "m": 2},
    "attention": {"name": "dit", "num_heads": 2},
    "pattern": {"name": "dit", "num_heads": 2, "mixers": ("s4d", "attention")},
    "levels": {"name": "dit", "num_heads": 2, "mixer": "s4d", "levels": (1, 2, 1)},
}
TINY = {"depth": 2, "width": 8, "state_size": 4, "dtype": "float32"}


def tiny_config(name="attention", **sections):
    data = {"image_size": 4, "num_classes": 3}
    return from_dict({"model": TINY | MODELS[name], "data": data} | sections)


def random_model(config):
    """A model whose zero parameters, too, are drawn, so that each layer does something."""
    return nnx.merge(*randomized(config))


def inputs(num=2):
    key = jax.random.key(2)
    return jax.random.normal(key, (num, 4, 4, 1)), jnp.arange(num), jnp.arange(num) % 3


@pytest.mark.parametrize("name", ["diffussm", "pattern", "levels"])
def test_the_walk_ends_with_the_models_output(name):
    model = random_model(tiny_config(name))
    visited = []

    @jax.jit
    def outputs(x_t, t, y):
        by_walk = walk(model, x_t, t, y, lambda *seen: visited.append(seen[:2]))
        return by_walk, model(x_t, t, y)

    by_walk, expected = outputs(*inputs())
    stages = [0, 1, 1, 2] if name == "levels" else [None, None]
    assert [layer.number for layer, _ in visited] == list(range(len(stages)))
    assert [layer.stack.stage for layer, _ in visited] == stages
    for layer, x in visited:
        assert x.shape == (2, math.prod(layer.grid) // model.group_size, layer.width)
        is_deep = layer.stack.stage == 1
        assert (layer.grid, layer.width) == (((2, 2), 16) if is_deep else ((4, 4), 8))
    np.testing.assert_allclose(by_walk, expected, rtol=1e-5, atol=1e-6)


def test_attention_maps_of_no_preference_and_of_one_token():
    a = jnp.full((1, 16, 16), 1 / 16)
    points = positions((4, 4))
    squares = jnp.asarray(square_distances(points, points))
    np.testing.assert_allclose(maps.entropy(a), [np.log(16)], rtol=1e-6)
    np.testing.assert_allclose(maps.incoming_mass(a), np.ones((1, 16)), rtol=1e-6)
    pairs = [np.sum((p - q) ** 2) for p in points for q in points]
    np.testing.assert_allclose(maps.effective_field(a, squares), [np.mean(pairs) ** 0.5], rtol=1e-6)
    near = np.mean([max(abs(p - q)) <= 1 for p in points for q in points])
    share = maps.mass_within(a, jnp.asarray(window(points, 3)))
    np.testing.assert_allclose(share, [near], rtol=1e-6)
    assert not maps.is_sink(maps.incoming_mass(a)).any()

    one = jnp.zeros((1, 16, 16)).at[:, :, 5].set(1)  # all look at token 5
    assert float(maps.entropy(one)[0]) == 0
    assert np.flatnonzero(maps.is_sink(maps.incoming_mass(one))) == [5]


def test_a_map_is_what_attention_applies():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 5, 2, 5))
    v = jnp.broadcast_to(jnp.eye(5)[None, :, None], (1, 5, 2, 5))
    expected = jax.nn.dot_product_attention(q, k, v)
    a = maps.attention_map(q, k)
    np.testing.assert_allclose(jnp.einsum("bhij->bihj", a), expected, rtol=1e-5)


def test_the_kernel_of_a_real_pole_is_an_exponential():
    poles = jnp.asarray([[[[-0.25, 0.0]]]])
    ssm = SSM(poles, jnp.asarray([[[[0.5, 0.0]]]]), jnp.zeros((1, 1)))
    np.testing.assert_allclose(filters.kernels(ssm, 9)[0, 0], np.exp(-0.25 * np.arange(9)))


def test_kernels_are_the_operators_response_to_an_impulse():
    poles, gains = jax.random.normal(jax.random.key(0), (2, 2, 3, 4, 2))
    poles = poles.at[..., 0].set(-jnp.abs(poles[..., 0]))
    ssm = SSM(poles, gains, jnp.asarray([[1.0, 2, 3], [4, 5, 6]]))
    k = filters.kernels(ssm, 7)
    forward = s4d(jnp.zeros((1, 7, 3)).at[:, 0].set(1), ssm)[0, :, :3]
    backward = s4d(jnp.zeros((1, 7, 3)).at[:, -1].set(1), ssm)[0, ::-1, 3:]
    np.testing.assert_allclose(k, np.stack([forward.T, backward.T]), rtol=1e-4, atol=1e-5)


def test_the_range_of_a_kernel():
    rows, columns = lag_squares((3, 4))
    for delta, (in_rows, in_columns) in {0: (0, 0), 4: (1, 0), 8: (2, 0)}.items():
        k = np.eye(12)[delta]
        assert filters.effective_range(k, rows) == in_rows
        assert filters.effective_range(k, columns) == in_columns
    # One lag leads to the next column, but from the last of four to the first of the next row.
    k = np.eye(12)[1]
    assert filters.effective_range(k, rows) == np.sqrt(1 / 4)
    assert filters.effective_range(k, columns) == np.sqrt((1 + 1 + 1 + 9) / 4)
    k = np.exp(-0.25 * np.arange(400))
    ratio = np.exp(-0.5)  # of |k|^2: the moments of a geometric distribution
    expected = np.sqrt(ratio * (1 + ratio)) / (1 - ratio)
    np.testing.assert_allclose(filters.effective_range(k, np.arange(400.0) ** 2), expected)


def test_the_sensitivity_of_a_linear_mixer_is_its_matrix():
    matrix = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    x = jnp.ones((2, 6, 3))
    tokens = np.array([0, 3, 5])
    for num_probes in (1, 3):
        s = sensitivity(
            lambda x: jnp.einsum("ij,bjd->bid", matrix, x),
            x,
            tokens,
            key=jax.random.key(0),
            num_probes=num_probes,
        )
        np.testing.assert_allclose(s, np.abs(matrix[None, :, tokens]).repeat(2, 0), rtol=1e-5)


def test_the_sensitivity_of_any_mixer_is_the_norm_of_its_jacobian():
    weights = jax.random.normal(jax.random.key(0), (4 * 3, 4 * 3))

    def mixer(x):
        return jnp.tanh(x.reshape(1, -1) @ weights).reshape(x.shape)

    x = 0.1 * jax.random.normal(jax.random.key(1), (1, 4, 3))
    s = sensitivity(mixer, x, np.arange(4), key=jax.random.key(2), num_probes=400)
    jacobian = jax.jacobian(mixer)(x)[0, :, :, 0]  # i d j d
    np.testing.assert_allclose(s[0], jnp.sqrt(jnp.square(jacobian).sum((1, 3)) / 3), rtol=0.15)


@pytest.mark.parametrize("name", ["diffussm", "attention", "pattern"])
def test_the_operator_of_s4d_does_the_same_to_every_image(name):
    model = random_model(tiny_config(name))

    @jax.jit
    def of_first_layer(x_t, t, y):
        x, c = model.enter(x_t, t, y)
        mixing = mixing_of(next(layers(model, (4, 4))).block, x, c, (4, 4))
        tokens, key = np.arange(16), jax.random.key(0)
        return sensitivity(mixing.apply, mixing.moved, tokens, key=key, num_probes=1)

    x_t, t, y = inputs(num=3)
    s = of_first_layer(x_t, 0 * t, 0 * y)
    points = positions((4, 4))
    of_s = summary(s, square_distances(points, points), middle=middle((4, 4), 16))
    variance = of_s["incoming_variance_over_images"]
    assert variance > 1e-7 if name == "attention" else variance < 1e-12
    np.testing.assert_allclose(of_s["incoming"].mean(), 1, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_replaced_map_is_the_identity_or_uniform(kind):
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 5, 2, 4))
    mixing = Mixing(lambda v: jax.nn.dot_product_attention(q, k, v), v)
    uniform = jnp.broadcast_to(v.mean(axis=1, keepdims=True), v.shape)
    expected = {"none": mixing.apply(v), "identity": v, "mean": uniform}[kind]
    np.testing.assert_allclose(replaced(mixing, KINDS.index(kind)), expected, atol=1e-6)


@pytest.mark.slow
def test_a_layer_without_mixing():
    """It costs nothing in a new model, whose blocks are the identity, and it does in another."""
    config = tiny_config("pattern", inspect={"num": 2})
    x0, _, y = inputs()
    batch = noised(config, CleanImages(x0, y, ""), 1.0)
    graphdef, _ = abstract_model(config)
    error = make_error(config, graphdef)
    process = create_process(config.diffusion)
    for params in (init_params(config), randomized(config)[1]):
        model = nnx.merge(graphdef, params)
        as_it_is = process.losses(model, batch)["mse"]
        errors = {
            (layer, kind): error(params, batch, jnp.asarray(layer), jnp.asarray(kind))
            for layer in range(2)
            for kind in range(3)
        }
        is_new = not np.any(params["head"]["kernel"])
        for (_, kind), value in errors.items():
            is_same = np.allclose(value, as_it_is, rtol=1e-5)
            assert is_same == (is_new or kind == 0)


@pytest.mark.parametrize("process", ["gaussian", "flow", "mean_flow"])
def test_the_time_of_a_noise_level(process):
    diffusion = {"process": process}
    if process != "gaussian":
        diffusion |= {"variance": "none", "prediction": "v"}
    config = tiny_config(
        diffusion=diffusion, sample={"sampler": "euler"} if "flow" in process else {}
    )
    made = create_process(config.diffusion)
    for level in (0.1, 1.0, 8.0):
        t = time_of(config.diffusion, level)[None]
        np.testing.assert_allclose(made.noise_level(made.conditions(t)), level, rtol=0.02)


def test_numbers_that_are_spread():
    np.testing.assert_array_equal(spread(9, 4), np.arange(4))
    assert middle((8, 8), 64) == 36
    numbers = spread(5, 64, include=36)
    assert 36 in numbers
    assert len(set(numbers)) == 5
    points = positions((2, 4), group_size=2)
    np.testing.assert_array_equal(points, [[0, 0.5], [0, 2.5], [1, 0.5], [1, 2.5]])
    assert root_mean_square(np.zeros(3), np.ones(3)) == 0
