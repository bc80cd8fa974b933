"""Samplers on data whose perfect denoiser is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffussm_jax.config import DiffusionConfig, GuidanceConfig
from diffussm_jax.diffusion.gaussian import make_gaussian
from diffussm_jax.diffusion.guidance import autoguidance, classifier_free, folded, within
from diffussm_jax.diffusion.process import NoisedBatch
from diffussm_jax.diffusion.samplers import SPACINGS, make_step, run_sampler
from diffussm_jax.diffusion.schedule import make_schedule
from tests.diffusion.mixture import SHAPE, assert_has_moments, keys, posterior_mean


def mixture_oracle(config):
    """The mixture's exact denoiser: the posterior mean of x0 by Bayes' rule over components."""
    table = make_schedule(config.schedule, config.num_steps).alpha_bar

    def model(x_t, t, y):
        alpha_bar = jnp.asarray(table, jnp.float32)[t[0]]
        signal, noise = jnp.sqrt(alpha_bar), jnp.sqrt(1 - alpha_bar)
        x0 = posterior_mean(x_t, signal, noise)
        eps = (x_t - signal * x0) / noise
        return {"eps": eps, "x0": x0, "v": signal * eps - noise * x0}[config.prediction]

    return model


def draw_mixture(
    name, num_steps, keys, *, schedule="linear", prediction="eps", eta=0.0, spacing=None
):
    config = DiffusionConfig(schedule=schedule, prediction=prediction, variance="fixed_small")
    spacing = spacing or SPACINGS[name]
    diffusion = make_gaussian(config, num_steps=num_steps, spacing=spacing)
    step, model = make_step(name, eta=eta), mixture_oracle(config)
    run = jax.jit(lambda keys: run_sampler(step, diffusion, model, keys, None, shape=SHAPE))
    return np.asarray(run(keys), np.float64).reshape(-1, 2)


@pytest.mark.parametrize(
    ("name", "num_steps", "eta"),
    [
        ("ddpm", 500, 0.0),
        ("ddim", 200, 0.0),
        ("ddim", 500, 1.0),
        ("dpm_solver++", 50, 0.0),
        ("heun", 50, 0.0),
    ],
)
@pytest.mark.parametrize(
    ("schedule", "prediction"),
    [
        ("linear", "eps"),
        pytest.param("cosine", "v", marks=pytest.mark.slow),
        pytest.param("linear", "x0", marks=pytest.mark.slow),
    ],
)
def test_a_mixture_is_sampled_to_its_moments(name, num_steps, eta, schedule, prediction):
    """20,000 samples have its mean and covariance within three standard errors."""
    x = draw_mixture(
        name, num_steps, keys(20_000), schedule=schedule, prediction=prediction, eta=eta
    )
    assert_has_moments(x)


@pytest.mark.parametrize(
    ("name", "schedule", "order"),
    [("ddim", "linear", 1), ("dpm_solver++", "cosine", 2), ("heun", "linear", 2)],
)
def test_solvers_converge_with_their_order(name, schedule, order):
    """Half the step, 2^order times nearer to where the flow takes each noise."""
    few = keys(200)
    exact = draw_mixture("heun", 500, few, schedule=schedule)
    errors = [
        np.abs(draw_mixture(name, num, few, schedule=schedule) - exact).mean()
        for num in (20, 40, 80)
    ]
    rates = np.log2(np.divide(errors[:-1], errors[1:]))
    assert np.all(rates > order - 0.4), rates


@pytest.mark.parametrize("name", ["dpm_solver++", "heun"])
def test_a_solver_has_the_spacing_it_needs(name):
    """With the even one DPM-Solver++ extrapolates too far at the end, or Heun starts too wide."""
    few = keys(200)
    exact = draw_mixture("heun", 500, few, schedule="cosine")
    chosen, even = (
        np.abs(draw_mixture(name, 20, few, schedule="cosine", spacing=x) - exact).mean()
        for x in (None, "even")
    )
    assert chosen < 0.8 * even


def test_all_samplers_start_from_one_noise_and_ddpm_alone_adds_more():
    few = keys(200)
    exact = draw_mixture("ddim", 100, few)
    for name in ("dpm_solver++", "heun"):
        assert np.abs(draw_mixture(name, 100, few) - exact).mean() < 0.02
    assert np.abs(draw_mixture("ddpm", 100, few) - exact).mean() > 0.1


NAMES = list(SPACINGS)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_depends_on_its_key_alone(name):
    whole = draw_mixture(name, 8, keys(6))
    part = draw_mixture(name, 8, keys(6)[4:])
    np.testing.assert_allclose(part, whole[4:], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_steps", [1, 2])
def test_few_steps_are_enough_to_be_finite(name, num_steps):
    assert np.isfinite(draw_mixture(name, num_steps, keys(4), schedule="cosine")).all()


@pytest.mark.parametrize("name", ["ddim", "dpm_solver++", "heun"])
def test_clipping_bounds_what_comes_out(name):
    config = DiffusionConfig(clip_x0=True)
    diffusion = make_gaussian(config, num_steps=20, spacing=SPACINGS[name])

    def wild(x_t, t, y):
        return jnp.concatenate([5 * x_t, -jnp.ones_like(x_t)], axis=-1)

    images = run_sampler(make_step(name), diffusion, wild, keys(8), None, shape=SHAPE)
    assert np.abs(images).max() <= 1


def labelled(x_t, t, y):
    """A model whose prediction is its label, and whose second half is the label's negative."""
    value = jnp.broadcast_to(y[:, None, None, None].astype(jnp.float32), x_t.shape)
    return jnp.concatenate([value, -value], axis=-1)


@pytest.mark.parametrize("scale", [0.0, 1.5, 4.0])
@pytest.mark.parametrize("channels", [None, 1])
def test_guidance_formula(scale, channels):
    guided = classifier_free(labelled, scale, null_label=10, cfg_channels=channels)
    x_t, t, y = jnp.zeros((2, 1, 1, 3)), jnp.zeros(2, int), jnp.array([2, 5])
    output = guided(x_t, t, y)
    expected = 10 + scale * (y - 10)
    num = channels or 3
    np.testing.assert_allclose(output[:, 0, 0, :num], np.tile(expected, (num, 1)).T)
    np.testing.assert_allclose(output[:, 0, 0, num:3], np.tile(y, (3 - num, 1)).T)
    np.testing.assert_allclose(
        output[:, 0, 0, 3:], -np.tile(y, (3, 1)).T
    )  # the conditional variance


def test_no_guidance_is_the_model_itself():
    assert classifier_free(labelled, 1.0, null_label=10) is labelled


@pytest.mark.parametrize("channels", [None, 1])
def test_autoguidance_moves_away_from_the_guide(channels):
    def worse(x_t, t, y):
        return labelled(x_t, t, y) - 1

    guided = autoguidance(labelled, worse, 3.0, channels=channels)
    x_t, t, y = jnp.zeros((2, 1, 1, 3)), jnp.zeros(2, int), jnp.array([2, 5])
    output, num = guided(x_t, t, y)[:, 0, 0], channels or 3
    np.testing.assert_allclose(output[:, :num], np.tile(y + 2, (num, 1)).T)
    np.testing.assert_allclose(output[:, num:3], np.tile(y, (3 - num, 1)).T)
    np.testing.assert_allclose(output[:, 3:], -np.tile(y, (3, 1)).T)


def test_guidance_acts_within_its_interval_alone():
    process = make_gaussian(DiffusionConfig())
    levels = process.schedule.noise_levels
    interval = float(levels[99]), float(levels[500])
    guided = classifier_free(labelled, 2.0, null_label=10)
    denoise = jax.jit(within(interval, guided, labelled, process))
    x_t, y = jnp.zeros((1, 1, 1, 3)), jnp.array([4])
    outputs = [float(denoise(x_t, jnp.array([t]), y)[0, 0, 0, 0]) for t in (98, 101, 499, 502)]
    assert outputs == [4.0, -2.0, -2.0, 4.0]


def test_folded_guidance_ends_where_classifier_free_guidance_is():
    """A model that learns its folded target again and again predicts u + scale (c - u)."""
    process = make_gaussian(DiffusionConfig())
    x0, eps = (jax.random.normal(jax.random.key(i), (2, 1, 1, 3)) for i in range(2))
    batch = NoisedBatch(x0, jnp.array([300, 700]), eps, y=jnp.array([2, 5]))
    plain = {y: jax.random.normal(jax.random.key(y), (1, 1, 3)) for y in (2, 5, 10)}
    learned = dict(plain)

    def model(x_t, t, y):
        prediction = jnp.stack([learned[int(label)] for label in y])
        return jnp.concatenate([prediction, 7 * prediction], axis=-1)

    for _ in range(60):
        shift = folded(GuidanceConfig(scale=2.5), process, model, batch, null_label=10)
        learned |= {y: plain[y] + shift[i] for i, y in enumerate((2, 5))}
    for y in (2, 5):
        expected = plain[10] + 2.5 * (plain[y] - plain[10])
        np.testing.assert_allclose(learned[y], expected, atol=1e-5)


def test_folded_guidance_spares_the_unlabelled_and_the_noisy():
    process = make_gaussian(DiffusionConfig())
    x0 = jnp.ones((4, 1, 1, 3))
    batch = NoisedBatch(x0, jnp.array([300, 300, 900, 300]), x0, y=jnp.array([2, 10, 2, 2]))
    batch = batch._replace(scale=jnp.array([2.0, 2.0, 2.0, 1.0]))
    config = GuidanceConfig(max_scale=4.0, max_noise=5.0)
    shift = folded(config, process, labelled, batch, null_label=10)
    np.testing.assert_allclose(shift[:, 0, 0, 0], [-4, 0, 0, 0])


def test_folded_guidance_leaves_the_bound_of_a_learned_variance():
    process = make_gaussian(DiffusionConfig())
    x0, eps, shift = (jax.random.normal(jax.random.key(i), (3, 2, 2, 1)) for i in range(3))
    output = jax.random.normal(jax.random.key(3), (3, 2, 2, 2))
    batch = NoisedBatch(x0, jnp.array([1, 400, 900]), eps)
    plain, shifted = (process.losses(lambda *_: output, batch, x) for x in (None, shift))
    np.testing.assert_array_equal(plain["vlb"], shifted["vlb"])
    expected = np.mean((output[..., :1] - eps - shift) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(shifted["mse"], expected, rtol=1e-6)
