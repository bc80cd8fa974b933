"""Flows against closed forms: a mixture's velocity, weights by their definition, drawn times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffussm_jax.config import DiffusionConfig, SampleConfig
from diffussm_jax.diffusion import create_process, create_sampler
from diffussm_jax.diffusion.flow import TIME_SCALE, Flow, point
from diffussm_jax.diffusion.process import NoisedBatch
from tests.diffusion.mixture import SHAPE, assert_has_moments, keys, posterior_mean


def flow_config(**options):
    return DiffusionConfig(**{"process": "flow", "prediction": "v", "variance": "none"} | options)


def oracle(prediction):
    """The exact network for the mixture, told t times TIME_SCALE."""

    def model(x_t, conditions, y):
        t = conditions[0] / TIME_SCALE
        x0 = posterior_mean(x_t, 1 - t, t)
        eps = (x_t - (1 - t) * x0) / t
        return {"v": eps - x0, "eps": eps, "x0": x0}[prediction]

    return model


def draw(sampler, num_steps, keys, *, prediction="v", sde="sigma", **options):
    config = flow_config(prediction=prediction, **options)
    run = create_sampler(config, SampleConfig(sampler=sampler, steps=num_steps, sde=sde))
    images = jax.jit(lambda keys: run(oracle(prediction), keys, None, shape=SHAPE))(keys)
    return np.asarray(images, np.float64).reshape(-1, 2)


@pytest.mark.parametrize(
    ("sampler", "num_steps", "options"),
    [
        ("euler", 500, {}),
        ("heun", 50, {}),
        ("euler_maruyama", 500, {}),
        pytest.param("euler", 500, {"prediction": "eps"}, marks=pytest.mark.slow),
        pytest.param("heun", 50, {"prediction": "x0"}, marks=pytest.mark.slow),
        pytest.param("heun", 50, {"time_sampling": "shifted", "time_shift": 3.0}),
        *(
            pytest.param("euler_maruyama", 1000, {"sde": form}, marks=pytest.mark.slow)
            for form in ("constant", "decreasing", "increasing_decreasing")
        ),
    ],
)
def test_a_mixture_is_sampled_to_its_moments(sampler, num_steps, options):
    """20,000 samples have its mean and covariance within three standard errors."""
    assert_has_moments(draw(sampler, num_steps, keys(20_000), **options))


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2)])
def test_solvers_converge_with_their_order(sampler, order):
    few = keys(200)
    exact = draw("heun", 500, few)
    errors = [np.abs(draw(sampler, num, few) - exact).mean() for num in (20, 40, 80)]
    assert np.all(np.log2(np.divide(errors[:-1], errors[1:])) > order - 0.4)


def test_noise_is_that_of_the_images_key():
    """The stochastic sampler too gives an image that depends on its own key alone."""
    whole = draw("euler_maruyama", 8, keys(6))
    np.testing.assert_allclose(draw("euler_maruyama", 8, keys(6)[4:]), whole[4:], atol=1e-6)
    assert np.abs(whole - draw("euler", 8, keys(6))).mean() > 0.05


@pytest.mark.parametrize("sampler", ["euler", "heun"])
@pytest.mark.parametrize("prediction", ["v", "eps", "x0"])
def test_clipping_bounds_what_comes_out(sampler, prediction):
    config = flow_config(prediction=prediction, clip_x0=True)
    run = create_sampler(config, SampleConfig(sampler=sampler, steps=20))
    images = run(lambda x_t, t, y: 5 * x_t, keys(8), None, shape=SHAPE)
    assert np.abs(images).max() <= 1 + 1e-6


@pytest.mark.parametrize("prediction", ["v", "eps", "x0"])
def test_an_exact_prediction_has_no_error_and_gives_back_the_velocity(prediction):
    x0, eps = (jax.random.normal(jax.random.key(i), (5, 3, 3, 2)) for i in range(2))
    t = jnp.array([0.05, 0.2, 0.5, 0.8, 0.95])
    flow = Flow(flow_config(prediction=prediction))
    exact = {"v": eps - x0, "eps": eps, "x0": x0}[prediction]
    losses = flow.losses(lambda *_: exact, NoisedBatch(x0, t, eps))
    np.testing.assert_allclose(losses["mse"], 0, atol=1e-12)
    velocity = flow.velocity(lambda *_: exact, flow.x_t(x0, t, eps), t, t, None)
    np.testing.assert_allclose(velocity, eps - x0, atol=1e-4)


@pytest.mark.parametrize("process", ["gaussian", "flow"])
@pytest.mark.parametrize("prediction", ["v", "eps", "x0"])
def test_min_snr_weighs_the_error_of_the_image(process, prediction):
    """Whatever is predicted, the loss is min(SNR, gamma) times the square of the error of x0."""
    variance = "none" if process == "flow" else "fixed_small"
    config = DiffusionConfig(
        process=process, prediction=prediction, variance=variance, weighting="min_snr"
    )
    diffusion = create_process(config)
    t = jnp.array([0.1, 0.4, 0.9]) if process == "flow" else jnp.array([50, 400, 900])
    here = point(t) if process == "flow" else diffusion.at(t)
    x0, eps, output = (jax.random.normal(jax.random.key(i), (3, 2, 2, 1)) for i in range(3))
    losses = diffusion.losses(lambda *_: output, NoisedBatch(x0, t, eps))
    error = here.x0(prediction, output, diffusion.x_t(x0, t, eps)) - x0
    snr = np.square(here.alpha / here.sigma)[:, 0, 0, 0]
    expected = np.minimum(snr, 5.0) * np.mean(np.square(error), axis=(1, 2, 3))
    np.testing.assert_allclose(losses["loss"], expected, rtol=2e-3)


@pytest.mark.parametrize(
    ("options", "undo", "expected"),
    [
        ({}, lambda t: t, stats.uniform()),
        (
            {"time_sampling": "logit_normal", "time_mean": -0.4, "time_std": 0.8},
            lambda t: np.log(t / (1 - t)),
            stats.norm(-0.4, 0.8),
        ),
        (
            {"time_sampling": "shifted", "time_shift": 3.0},
            lambda t: t / (3 - 2 * t),
            stats.uniform(),
        ),
    ],
)
def test_times_have_the_distribution_that_was_asked_for(options, undo, expected):
    """Undone, the logit-normal times are normal and the shifted ones uniform, as are steps."""
    few = jax.random.split(jax.random.key(0), 4000)
    times = jax.vmap(Flow(flow_config(**options)).draw_time)(few)
    steps = jax.vmap(create_process(DiffusionConfig(**options)).draw_time)(few)
    assert steps.dtype == jnp.int32
    within_step = np.random.default_rng(0).uniform(size=4000)
    for t in (np.asarray(times, np.float64), (np.asarray(steps) + within_step) / 1000):
        assert stats.kstest(undo(t), expected.cdf).pvalue > 1e-3
