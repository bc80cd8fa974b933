"""The process against brute force: Bayes' rule on a grid, numerical integrals, exact denoisers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from diffussm_jax.config import DiffusionConfig
from diffussm_jax.diffusion import gaussian
from diffussm_jax.diffusion.gaussian import Gaussian, make_gaussian
from diffussm_jax.diffusion.process import NoisedBatch
from diffussm_jax.diffusion.schedule import make_schedule

SCHEDULE = make_schedule("linear", 1000)


def process(prediction="eps", variance="learned_range", **options):
    config = DiffusionConfig(prediction=prediction, variance=variance, **options)
    return Gaussian(config, SCHEDULE)


def images(*values):
    return jnp.asarray(values, jnp.float32)[:, None, None, None]


@pytest.mark.parametrize("t", [1, 10, 500, 999])
def test_posterior_is_bayes_rule(t):
    """q(x_{t-1} | x_t, x_0) from q(x_{t-1} | x_0) q(x_t | x_{t-1}) on a fine grid."""
    alpha_bar, beta = SCHEDULE.alpha_bar, SCHEDULE.betas[t]
    x0 = 0.3
    x_t = np.sqrt(alpha_bar[t]) * x0 - 1.5 * np.sqrt(1 - alpha_bar[t])
    centre = np.sqrt(alpha_bar[t - 1]) * x0
    grid = np.linspace(-8, 8, 400_001)
    density = stats.norm.pdf(grid, centre, np.sqrt(1 - alpha_bar[t - 1]))
    density *= stats.norm.pdf(x_t, np.sqrt(1 - beta) * grid, np.sqrt(beta))
    density /= density.sum()
    mean = (grid * density).sum()
    variance = ((grid - mean) ** 2 * density).sum()
    actual = gaussian.q_posterior_mean(SCHEDULE, images(x0), images(x_t), jnp.array([t]))
    assert float(actual[0, 0, 0, 0]) == pytest.approx(mean, abs=2e-4)
    assert SCHEDULE.posterior_variance[t] == pytest.approx(variance, rel=1e-3)


def test_log_variance_at_0_is_that_of_1():
    assert SCHEDULE.posterior_log_variance[0] == SCHEDULE.posterior_log_variance[1]
    assert SCHEDULE.posterior_log_variance[5] == np.log(SCHEDULE.posterior_variance[5])


def test_q_sample_has_the_marginal_of_the_chain():
    """x_t drawn at once has the mean and variance of x_0 pushed through t single steps."""
    mean, variance = 0.7, 0.0
    for beta in SCHEDULE.betas[:301]:
        mean, variance = np.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
    eps = jax.random.normal(jax.random.key(0), (20_000, 1, 1, 1))
    x_t = process().x_t(jnp.full_like(eps, 0.7), jnp.full((20_000,), 300), eps)
    assert float(x_t.mean()) == pytest.approx(mean, abs=0.02)
    assert float(x_t.var()) == pytest.approx(variance, rel=0.04)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_an_exact_prediction_gives_back_the_image_and_no_squared_error(prediction):
    x0 = jax.random.uniform(jax.random.key(0), (6, 4, 4, 2), minval=-1)
    eps = jax.random.normal(jax.random.key(1), x0.shape)
    t = jnp.array([1, 10, 100, 300, 600, 900])
    diffusion = process(prediction, "fixed_small")
    signal = np.sqrt(SCHEDULE.alpha_bar[t])[:, None, None, None]
    noise = np.sqrt(1 - SCHEDULE.alpha_bar[t])[:, None, None, None]
    exact = {"eps": eps, "x0": x0, "v": signal * eps - noise * x0}[prediction]

    def model(x_t, t, y):
        return exact

    losses = diffusion.losses(model, NoisedBatch(x0, t, eps))
    np.testing.assert_allclose(losses["mse"], 0, atol=1e-9)
    x_t = process().x_t(x0, t, eps)
    step = diffusion.reverse_step(model, x_t, t, None)
    np.testing.assert_allclose(step.x0, x0, atol=2e-3)
    np.testing.assert_allclose(step.eps, eps, atol=1e-4)
    expected = gaussian.q_posterior_mean(SCHEDULE, x0, x_t, t)
    np.testing.assert_allclose(step.mean, expected, atol=1e-4)


def test_learned_variance_interpolates_between_its_bounds():
    diffusion = process()
    t = jnp.array([400])
    for value, expected in (
        (-1, np.log(SCHEDULE.posterior_variance[400])),
        (1, np.log(SCHEDULE.betas[400])),
    ):
        output = jnp.concatenate([jnp.zeros((1, 2, 2, 1)), jnp.full((1, 2, 2, 1), value)], -1)
        step = diffusion.reverse_step(
            lambda x, t, y, output=output: output, jnp.zeros((1, 2, 2, 1)), t, None
        )
        np.testing.assert_allclose(step.log_variance, expected, rtol=1e-5)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_training_does_not_clip(prediction):
    """The bound of a learned variance sees predictions beyond [-1, 1] as they are."""
    rng = np.random.default_rng(0)
    x0, eps = (jnp.asarray(rng.normal(size=(4, 2, 2, 1)), jnp.float32) for _ in range(2))
    output = jnp.asarray(3 * rng.normal(size=(4, 2, 2, 2)), jnp.float32)
    t = jnp.array([0, 10, 500, 999])
    clipped, plain = (
        process(prediction, clip_x0=clip).losses(lambda x, t, y: output, NoisedBatch(x0, t, eps))
        for clip in (True, False)
    )
    np.testing.assert_array_equal(clipped["loss"], plain["loss"])


def test_kl_is_the_integral():
    m1, s1, m2, s2 = 0.3, 0.5, -0.2, 0.9

    def integrand(x):
        p, q = stats.norm(m1, s1), stats.norm(m2, s2)
        return p.pdf(x) * (p.logpdf(x) - q.logpdf(x))

    expected = integrate.quad(integrand, -10, 10)[0]
    actual = gaussian.normal_kl(m1, jnp.log(s1**2), m2, jnp.log(s2**2))
    assert float(actual) == pytest.approx(expected, rel=1e-5)


def test_likelihood_of_all_256_values_sums_to_one():
    values = images(*(np.arange(256) / 127.5 - 1))
    log_likelihood = gaussian.discretized_log_likelihood(
        values, jnp.full_like(values, 0.2), jnp.full_like(values, np.log(0.3))
    )
    assert float(jnp.exp(log_likelihood).sum()) == pytest.approx(1, abs=1e-4)


def test_the_bound_is_in_bits_and_trains_the_variance_alone():
    diffusion = make_gaussian(DiffusionConfig())
    x0 = jax.random.uniform(jax.random.key(0), (4, 3, 3, 1), minval=-1)
    eps = jax.random.normal(jax.random.key(1), x0.shape)
    t = jnp.array([0, 3, 400, 999])

    def losses(output):
        return diffusion.losses(lambda x, t, y: output, NoisedBatch(x0, t, eps))

    output = 0.3 * jax.random.normal(jax.random.key(2), (4, 3, 3, 2))
    gradient = jax.grad(lambda output: losses(output)["vlb"].sum())(output)
    np.testing.assert_array_equal(gradient[..., :1], 0)
    assert np.all(gradient[1:, ..., 1:] != 0)
    values = losses(output)
    np.testing.assert_allclose(values["loss"], values["mse"] + values["vlb"], rtol=1e-6)
    # At an interpolation of -1 the variances agree, so the divergence is the distance of the means.
    output = output.at[..., 1:].set(-1)
    x_t = diffusion.x_t(x0, t, eps)
    step = diffusion.reverse_step(lambda x, t, y: output, x_t, t, None)
    mean = gaussian.q_posterior_mean(diffusion.schedule, x0, x_t, t)
    variance = diffusion.schedule.posterior_variance[np.asarray(t)][:, None, None, None]
    expected = np.mean((mean - step.mean) ** 2, axis=(1, 2, 3))[1:] / (2 * variance[1:, 0, 0, 0])
    np.testing.assert_allclose(losses(output)["vlb"][1:], expected / np.log(2), rtol=2e-3)


def test_bound_is_weighted_by_the_number_of_steps():
    diffusion = make_gaussian(DiffusionConfig(num_steps=200))
    x0 = eps = jnp.ones((1, 2, 2, 1))
    batch = NoisedBatch(x0, jnp.array([9]), eps)
    losses = diffusion.losses(lambda x, t, y: jnp.zeros((1, 2, 2, 2)), batch)
    np.testing.assert_allclose(losses["loss"], losses["mse"] + 0.2 * losses["vlb"], rtol=1e-6)
