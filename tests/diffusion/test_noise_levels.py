"""Edits on a mixture of Gaussians: its exact denoisers, and conditionals known in closed form."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffussm_jax.config import DiffusionConfig, SampleConfig
from diffussm_jax.diffusion import create_sampler
from diffussm_jax.diffusion.flow import TIME_SCALE
from diffussm_jax.diffusion.inpainting import inpaint, moves
from diffussm_jax.diffusion.inversion import invert, slerp
from diffussm_jax.diffusion.levels import Given, make_levels
from tests.diffusion.mixture import COVARIANCES, MEANS, SHAPE, WEIGHTS, keys, posterior_mean
from tests.diffusion.test_samplers import mixture_oracle

logger = logging.getLogger(__name__)

GAUSSIAN = DiffusionConfig(variance="fixed_small")
FLOW = DiffusionConfig(process="flow", prediction="v", variance="none")


def velocity(x_t, t, y):
    t = t[0] / TIME_SCALE
    return (x_t - posterior_mean(x_t, 1 - t, t)) / jnp.maximum(t, 1e-6)


PROCESSES = {"gaussian": (GAUSSIAN, mixture_oracle(GAUSSIAN)), "flow": (FLOW, velocity)}
STEP = {"gaussian": "ddim", "flow": "euler"}
ONE_IN_THE_QUICK_TIER = pytest.mark.parametrize(
    "process", [pytest.param("gaussian", marks=pytest.mark.slow), "flow"]
)


def points(num):
    """Samples of the mixture."""
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(WEIGHTS), num, p=WEIGHTS)
    drawn = [rng.multivariate_normal(MEANS[k], COVARIANCES[k]) for k in chosen]
    return jnp.asarray(drawn, jnp.float32).reshape(-1, *SHAPE)


@ONE_IN_THE_QUICK_TIER
def test_all_steps_from_noise_are_sampling(process):
    """And fewer begin at the image, noised less."""
    config, model = PROCESSES[process]
    options = SampleConfig(sampler=STEP[process], steps=6)
    given, x0 = Given(model, keys(50), None), points(50)
    sampled = create_sampler(config, options)(model, given.keys, None, shape=SHAPE)
    redrawn = make_levels(config, options).redraw(given, x0)
    np.testing.assert_allclose(redrawn, sampled, atol=1e-5)
    moved = [
        np.abs(make_levels(config, options, num_steps=n).redraw(given, x0) - x0).mean()
        for n in (1, 4)
    ]
    assert moved == sorted(moved)


@pytest.mark.slow
def test_a_multistep_solver_may_begin_at_an_image():
    """Its first step has no estimate before it, wherever that is."""
    options = SampleConfig(sampler="dpm_solver++", steps=30)
    levels = make_levels(GAUSSIAN, options, num_steps=10)
    x0 = points(500)
    drawn = levels.redraw(Given(mixture_oracle(GAUSSIAN), keys(500), None), x0)
    assert np.abs(drawn.mean(0) - x0.mean(0)).max() < 0.05
    assert np.abs(drawn.std(0) - x0.std(0)).max() < 0.05


@ONE_IN_THE_QUICK_TIER
def test_images_come_back_from_their_noise(process):
    """And nearer by three calls for a step than by DDIM's inversion, which makes one."""
    config, model = PROCESSES[process]
    levels = make_levels(config, SampleConfig(sampler=STEP[process], steps=20))
    given, x0 = Given(model, keys(100), None), points(100)

    def error(num):
        run = jax.jit(lambda x: levels.descend(given, invert(levels, given, x, iterations=num)))
        return float(jnp.sqrt(jnp.mean(jnp.square(run(x0) - x0))))

    once, thrice = error(1), error(3)
    assert thrice < 0.8 * once
    assert thrice < 0.05


def conditional(x):
    """Mean and variance of the second coordinate, given the first."""
    var = COVARIANCES[:, 0, 0]
    odds = WEIGHTS * np.exp(-((x - MEANS[:, 0]) ** 2) / (2 * var)) / np.sqrt(var)
    odds /= odds.sum()
    slope = COVARIANCES[:, 1, 0] / var
    means = MEANS[:, 1] + slope * (x - MEANS[:, 0])
    squares = COVARIANCES[:, 1, 1] - slope * COVARIANCES[:, 1, 0] + means**2
    return odds @ means, odds @ squares - (odds @ means) ** 2


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("known", [-0.5, 0.4])
def test_inpainting_draws_the_conditional(process, known):
    """Its mean within three standard errors of 1,000 samples, and nearer than replacement's."""
    config, model = PROCESSES[process]
    sampler = {"gaussian": "ddpm", "flow": "euler"}[process]
    levels = make_levels(config, SampleConfig(sampler=sampler, steps=250))
    num = 1000
    given, x0 = Given(model, keys(num), None), jnp.full((num, *SHAPE), known)
    mask = jnp.broadcast_to(jnp.array([False, True]), x0.shape)
    mean, variance = conditional(known)

    def off(resamplings):
        """The error of the mean, in standard errors."""
        jumps = {"jump_length": 2, "resamplings": resamplings}
        x = np.asarray(jax.jit(lambda x: inpaint(levels, given, x, mask, **jumps))(x0), np.float64)
        np.testing.assert_array_equal(x[..., 0], np.float32(known))
        error = abs(x[..., 1].mean() - mean) / np.sqrt(variance / num)
        logger.info("%s, %g known, %d resamplings: %.1f", process, known, resamplings, error)
        return error

    repainted, replaced = off(20), off(1)
    assert repainted < 3
    assert replaced > repainted + 1


def test_moves_go_every_stretch_several_times():
    low, high = moves(5, 2, 2)
    assert [*zip(low, high)] == [
        *((5, 5), (4, 4), (3, 5), (4, 4)),
        *((3, 3), (2, 2), (1, 3), (2, 2)),
        *((1, 1), (0, 1)),
    ]
    low, high = moves(4, 10, 1)
    assert [*low] == [*high] == [4, 3, 2, 1]


@pytest.mark.parametrize("process", PROCESSES)
def test_noise_is_added_as_if_at_once(process):
    """From level 2 to 4 as from the image: the same share of it, and the same variance."""
    config, _ = PROCESSES[process]
    levels = make_levels(config, SampleConfig(sampler=STEP[process], steps=5))
    x, eps = jnp.full((20_000, *SHAPE), 0.7), jax.random.normal(jax.random.key(0), (20_000, 2))
    first, second = (e.reshape(-1, 1, 1, 1) * jnp.ones(SHAPE) for e in eps.T)
    higher = levels.noised_up(levels.mix(x, 2, first), 2, 4, second)
    np.testing.assert_allclose(higher.mean(), 0.7 * levels.alpha[4], atol=0.02)
    np.testing.assert_allclose(higher.std(), levels.sigma[4], rtol=0.02)
    top = levels.noised_up(x, 5, 5, second.reshape(x.shape))
    np.testing.assert_array_equal(top, x)


def test_slerp_keeps_the_norm_of_noise():
    a, b = (jax.random.normal(key, (3, 8, 8, 1)) for key in jax.random.split(jax.random.key(0)))
    ends = slerp(a, b, jnp.array([0.0, 1.0, 0.5]))
    np.testing.assert_allclose(ends[0], a[0], atol=1e-5)
    np.testing.assert_allclose(ends[1], b[1], atol=1e-5)
    assert 0.9 < float(ends[2].std() / a[2].std()) < 1.1
