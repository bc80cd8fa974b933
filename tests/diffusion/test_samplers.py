"""Samplers on data whose perfect denoiser is known in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffussm_jax.config import DiffusionConfig
from diffussm_jax.diffusion.gaussian import make_diffusion
from diffussm_jax.diffusion.guidance import classifier_free
from diffussm_jax.diffusion.samplers import ddim, ddpm
from diffussm_jax.diffusion.schedule import make_schedule

MEAN, SCALE = 0.4, 0.3
SHAPE = (1, 1, 2)


def oracle(config):
    """The exact denoiser of independent Gaussian pixels with MEAN and SCALE."""
    alpha_bar = jnp.asarray(
        make_schedule(config.schedule, config.num_steps).alpha_bar, jnp.float32
    )

    def model(x_t, t, y):
        signal = jnp.sqrt(alpha_bar[t])[:, None, None, None]
        noise = jnp.sqrt(1 - alpha_bar[t])[:, None, None, None]
        gain = SCALE**2 * signal / (SCALE**2 * signal**2 + noise**2)
        x0 = MEAN + gain * (x_t - signal * MEAN)
        eps = (x_t - signal * x0) / noise
        output = {"eps": eps, "x0": x0, "v": signal * eps - noise * x0}[
            config.prediction
        ]
        if config.variance == "learned_range":
            output = jnp.concatenate([output, -jnp.ones_like(output)], axis=-1)
        return output

    return model


def keys(num, seed=0):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(
        jnp.arange(num)
    )


@pytest.mark.parametrize("sampler", [ddpm, ddim, functools.partial(ddim, eta=1.0)])
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_oracle_denoiser_gives_the_data_distribution(sampler, prediction, schedule):
    config = DiffusionConfig(prediction=prediction, schedule=schedule)
    diffusion = make_diffusion(config, num_steps=1000)
    run = jax.jit(
        lambda keys: sampler(diffusion, oracle(config), keys, None, shape=SHAPE)
    )
    samples = run(keys(4000))
    assert samples.shape == (4000, *SHAPE)
    assert float(samples.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(samples.std()) == pytest.approx(SCALE, rel=0.05)
    correlation = np.corrcoef(np.asarray(samples).reshape(-1, 2).T)[0, 1]
    assert abs(correlation) < 0.07


def test_ddim_is_a_function_of_its_first_noise_and_ddpm_is_not():
    config = DiffusionConfig()
    diffusion = make_diffusion(config, num_steps=10)
    samples = ddim(diffusion, oracle(config), keys(200), None, shape=SHAPE)
    first = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 10), SHAPE))(
        keys(200)
    )
    slope, offset = np.polyfit(np.ravel(first), np.ravel(samples), 1)
    np.testing.assert_allclose(
        np.ravel(samples), slope * np.ravel(first) + offset, atol=1e-4
    )
    noisy = ddpm(diffusion, oracle(config), keys(200), None, shape=SHAPE)
    assert np.abs(np.corrcoef(np.ravel(first), np.ravel(noisy))[0, 1]) < 0.9


@pytest.mark.parametrize("sampler", [ddpm, ddim])
def test_an_image_depends_on_its_key_alone(sampler):
    config = DiffusionConfig()
    diffusion = make_diffusion(config, num_steps=8)
    run = functools.partial(sampler, diffusion, oracle(config), y=None, shape=SHAPE)
    whole = run(keys(6))
    np.testing.assert_allclose(run(keys(6)[4:]), whole[4:], rtol=1e-6, atol=1e-6)


def test_clipping_bounds_every_estimate():
    config = DiffusionConfig(clip_x0=True)
    diffusion = make_diffusion(config, num_steps=20)

    def wild(x_t, t, y):
        return jnp.concatenate([5 * x_t, -jnp.ones_like(x_t)], axis=-1)

    assert np.abs(ddim(diffusion, wild, keys(8), None, shape=SHAPE)).max() <= 1


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
