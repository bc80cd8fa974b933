"""Mean flows against the average velocity of a Gaussian, which is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from diffussm_jax.config import DiffusionConfig, SampleConfig
from diffussm_jax.diffusion import create_sampler
from diffussm_jax.diffusion.flow import TIME_SCALE
from diffussm_jax.diffusion.mean_flow import MeanFlow
from diffussm_jax.diffusion.process import NoisedBatch
from tests.diffusion.mixture import keys

MEAN, STD = 0.7, 0.3
CONFIG = DiffusionConfig(process="mean_flow", prediction="v", variance="none")


def exact_u(x_t, conditions, y=None):
    """The average velocity of N(MEAN, STD^2), by the flow's own map.

    x_t is N((1 - t) MEAN, (1 - t)^2 STD^2 + t^2), and the flow keeps its standard score.
    """
    t, length = (conditions[:, i, None, None, None] / TIME_SCALE for i in range(2))
    r = t - length

    def std(t):
        return jnp.sqrt(jnp.square((1 - t) * STD) + jnp.square(t))

    score = (x_t - (1 - t) * MEAN) / std(t)
    x_r = (1 - r) * MEAN + std(r) * score
    at_once = -MEAN + (t - (1 - t) * STD**2) / std(t) * score  # the limit r = t: the velocity
    is_short = length < 1e-4
    return jnp.where(is_short, at_once, (x_t - x_r) / jnp.where(is_short, 1.0, length))


def gaussian_batch(key, num):
    keys = jax.random.split(key, 3)
    x0, eps = (jax.random.normal(k, (num, 1, 1, 1)) for k in keys[:2])
    times = jax.vmap(MeanFlow(CONFIG).draw_time)(jax.random.split(keys[2], num))
    return NoisedBatch(MEAN + STD * x0, times, eps)


def test_times_are_ordered_and_half_of_them_equal():
    times = np.asarray(gaussian_batch(jax.random.key(0), 4000).t)
    assert np.all(times[:, 1] <= times[:, 0])
    assert np.mean(times[:, 0] == times[:, 1]) == pytest.approx(0.5, abs=0.03)


def test_the_exact_average_is_a_fixed_point():
    """There the mean gradient by any change of u, a function of what it is told, is noise."""
    process = MeanFlow(CONFIG)
    batch = gaussian_batch(jax.random.key(1), 100_000)

    def loss(scale, example):
        def model(x_t, conditions, y):
            t, length = (conditions[:, i, None, None, None] / TIME_SCALE for i in range(2))
            features = jnp.stack([jnp.ones_like(t), t, length, x_t, x_t * length, x_t * t])
            return exact_u(x_t, conditions) + jnp.tensordot(scale, features, 1)

        one = jax.tree.map(lambda x: x[None], example)
        return process.losses(model, one)["loss"][0]

    gradients = jax.vmap(jax.grad(loss), (None, 0))(jnp.zeros(6), batch)
    error = gradients.std(axis=0) / np.sqrt(len(gradients))
    assert np.all(np.abs(gradients.mean(axis=0)) < 3.5 * error)
    moved = jax.vmap(jax.grad(loss), (None, 0))(jnp.full(6, 0.05), batch)
    assert np.all(np.abs(moved.mean(axis=0)) > 5 * error)


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_any_number_of_calls_draws_the_gaussian(num_steps):
    run = create_sampler(CONFIG, SampleConfig(sampler="euler", steps=num_steps))
    x = np.asarray(run(exact_u, keys(20_000), None, shape=(1, 1, 1)), np.float64)
    assert x.mean() == pytest.approx(MEAN, abs=3 * STD / np.sqrt(20_000))
    assert x.std() == pytest.approx(STD, abs=3 * STD / np.sqrt(40_000))


class Network(nnx.Module):
    """A small network of x_t and what it is told."""

    def __init__(self, rngs):
        self.layers = nnx.List(
            [nnx.Linear(a, b, rngs=rngs) for a, b in ((3, 64), (64, 64), (64, 64), (64, 1))]
        )

    def __call__(self, x_t, conditions, y=None):
        x = jnp.concatenate([x_t[:, 0, 0], conditions / TIME_SCALE], axis=-1)
        for layer in self.layers[:-1]:
            x = jax.nn.silu(layer(x))
        return self.layers[-1](x)[:, None, None]


@pytest.mark.slow
def test_a_network_learns_the_exact_average():
    """Within 2 % of its magnitude, over the times that are trained."""
    process = MeanFlow(CONFIG)
    graphdef, params = nnx.split(Network(nnx.Rngs(0)))
    num_steps = 4000
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, num_steps))

    def loss(params, batch):
        return process.losses(nnx.merge(graphdef, params), batch)["loss"].mean()

    def step(carry, key):
        params, state = carry
        grads = jax.grad(loss)(params, gaussian_batch(key, 1024))
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), None

    many = jax.random.split(jax.random.key(2), num_steps)
    train = jax.jit(lambda carry: jax.lax.scan(step, carry, many)[0])
    params, _ = train((params, optimizer.init(params)))
    batch = gaussian_batch(jax.random.key(3), 20_000)
    x_t, t = process.x_t(*batch[:3]), batch.t
    told = TIME_SCALE * jnp.stack([t[:, 0], t[:, 0] - t[:, 1]], axis=-1)
    expected = exact_u(x_t, told)
    error = nnx.merge(graphdef, params)(x_t, told) - expected
    assert np.sqrt(np.mean(error**2) / np.mean(expected**2)) < 0.02
