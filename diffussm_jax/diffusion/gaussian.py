"""The Gaussian diffusion process: q, its posterior, the model's p and the training loss.

Ho et al. 2020 (DDPM), with the learned-range variance and the hybrid loss of Nichol & Dhariwal 2021
that ADM, DiT and DiffuSSM train with. `t` counts the steps of a schedule, which may be respaced;
the model gets `schedule.timesteps[t]`, the step of the full process.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffussm_jax.config import DiffusionConfig
from diffussm_jax.diffusion.schedule import Schedule, Spacing, make_schedule, respace
from diffussm_jax.shapes import Images, Labels, Timesteps

Prediction = Literal["eps", "v", "x0"]
Variance = Literal["learned_range", "fixed_small", "fixed_large"]
Denoiser = Callable[[Images, Timesteps, Labels | None], Array]

PerExample = Float[Array, " b"]


@dataclasses.dataclass(frozen=True, eq=False)
class Diffusion:
    """A process and what the model's output means in it.

    Attributes:
        schedule: the steps, respaced for sampling or not.
        prediction: what the model predicts: the noise, v = sqrt(a) eps - sqrt(1-a) x0
            (Salimans & Ho 2022) or the clean image.
        variance: of p(x_{t-1} | x_t). With "learned_range" the second half of the output channels
            interpolates between log beta-tilde_t and log beta_t; the others take one of the two.
        clip_x0: clamp the predicted clean image to [-1, 1] while sampling, for models of pixels.
            The training loss does without, as those of iDDPM, ADM and DiT do.
    """

    schedule: Schedule
    prediction: Prediction = "eps"
    variance: Variance = "learned_range"
    clip_x0: bool = False


def make_diffusion(
    config: DiffusionConfig, *, num_steps: int | None = None, spacing: Spacing = "even"
) -> Diffusion:
    """The process of a config, respaced to `num_steps` if given."""
    schedule = make_schedule(config.schedule, config.num_steps)
    if num_steps is not None:
        schedule = respace(schedule, num_steps, spacing)
    return Diffusion(schedule, config.prediction, config.variance, config.clip_x0)


class ReverseStep(NamedTuple):
    """The model's p(x_{t-1} | x_t) and the estimates it came from."""

    mean: Images
    log_variance: Array
    x0: Images
    eps: Images


def q_sample(schedule: Schedule, x0: Images, t: Timesteps, eps: Images) -> Images:
    """x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps (Ho et al., eq. 4)."""
    signal, noise = _signal_and_noise(schedule, t)
    return signal * x0 + noise * eps


def q_posterior_mean(schedule: Schedule, x0: Images, x_t: Images, t: Timesteps) -> Images:
    """The mean of q(x_{t-1} | x_t, x0) (Ho et al., eq. 7)."""
    c_x0, c_x = schedule.posterior_mean_coefficients
    return _at(c_x0, t) * x0 + _at(c_x, t) * x_t


def reverse_step(
    diffusion: Diffusion, model: Denoiser, x_t: Images, t: Timesteps, y: Labels | None
) -> ReverseStep:
    """Run the model once and form p(x_{t-1} | x_t) from its output."""
    output = model(x_t, jnp.asarray(diffusion.schedule.timesteps)[t], y)
    prediction, log_variance = _split_output(diffusion, output, t)
    return _interpret(diffusion, prediction, log_variance, x_t, t)


def training_loss(
    diffusion: Diffusion, model: Denoiser, x0: Images, t: Timesteps, eps: Images, y: Labels | None
) -> dict[str, PerExample]:
    """The hybrid loss of each example: squared error, plus the bound for a learned variance.

    Returns:
        loss = mse + vlb * num_steps / 1000, and its two terms. The bound is in bits per dimension
        and sees the mean through a stop-gradient, so that it trains the variance alone (Nichol &
        Dhariwal, eq. 16).
    """
    schedule = diffusion.schedule
    x_t = q_sample(schedule, x0, t, eps)
    output = model(x_t, jnp.asarray(schedule.timesteps)[t], y)
    prediction, log_variance = _split_output(diffusion, output, t)
    target = _target(diffusion.prediction, schedule, x0, t, eps)
    mse = _mean(jnp.square(prediction - target))
    if diffusion.variance != "learned_range":
        return {"loss": mse, "mse": mse}
    unclipped = dataclasses.replace(diffusion, clip_x0=False)
    frozen = _interpret(unclipped, jax.lax.stop_gradient(prediction), log_variance, x_t, t)
    vlb = variational_bound(schedule, frozen, x0, x_t, t)
    return {"loss": mse + vlb * schedule.num_steps / 1000, "mse": mse, "vlb": vlb}


def variational_bound(
    schedule: Schedule, p: ReverseStep, x0: Images, x_t: Images, t: Timesteps
) -> PerExample:
    """The term L_t of the bound, in bits per dimension (Ho et al., eq. 5).

    It is a KL divergence; at t = 0, the negative log-likelihood of the 8-bit image.
    """
    mean = q_posterior_mean(schedule, x0, x_t, t)
    divergence = normal_kl(mean, _at(schedule.posterior_log_variance, t), p.mean, p.log_variance)
    likelihood = discretized_log_likelihood(x0, p.mean, 0.5 * p.log_variance)
    return jnp.where(t == 0, -_mean(likelihood), _mean(divergence)) / np.log(2)


def normal_kl(
    mean1: Array | float, log_variance1: Array, mean2: Array | float, log_variance2: Array
) -> Array:
    """The KL divergence between two Gaussians, elementwise, in nats."""
    ratio = jnp.exp(log_variance1 - log_variance2)
    distance = jnp.square(mean1 - mean2) * jnp.exp(-log_variance2)
    return 0.5 * (log_variance2 - log_variance1 + ratio + distance - 1)


def discretized_log_likelihood(x: Images, mean: Images, log_scale: Array) -> Array:
    """Log-probability of 8-bit values in [-1, 1] under a Gaussian, elementwise (Ho et al., eq. 13).

    The two outermost bins extend to infinity.
    """
    inverse_scale = jnp.exp(-log_scale)
    upper = jax.scipy.stats.norm.cdf((x - mean + 1 / 255) * inverse_scale)
    lower = jax.scipy.stats.norm.cdf((x - mean - 1 / 255) * inverse_scale)
    upper = jnp.where(x > 0.999, 1.0, upper)
    lower = jnp.where(x < -0.999, 0.0, lower)
    return jnp.log(jnp.maximum(upper - lower, 1e-12))


def _split_output(diffusion: Diffusion, output: Array, t: Timesteps) -> tuple[Images, Array]:
    """The prediction, and the log variance of p(x_{t-1} | x_t)."""
    smallest = _at(diffusion.schedule.posterior_log_variance, t)
    largest = _at(np.log(diffusion.schedule.betas), t)
    if diffusion.variance == "learned_range":
        prediction, interpolation = jnp.split(output, 2, axis=-1)
        weight = (interpolation + 1) / 2
        return prediction, weight * largest + (1 - weight) * smallest
    return output, smallest if diffusion.variance == "fixed_small" else largest


def _interpret(
    diffusion: Diffusion, prediction: Images, log_variance: Array, x_t: Images, t: Timesteps
) -> ReverseStep:
    signal, noise = _signal_and_noise(diffusion.schedule, t)
    if diffusion.prediction == "eps":
        x0 = (x_t - noise * prediction) / signal
    elif diffusion.prediction == "v":
        x0 = signal * x_t - noise * prediction
    else:
        x0 = prediction
    if diffusion.clip_x0:
        x0 = jnp.clip(x0, -1, 1)
    eps = (x_t - signal * x0) / noise
    mean = q_posterior_mean(diffusion.schedule, x0, x_t, t)
    return ReverseStep(mean, jnp.broadcast_to(log_variance, mean.shape), x0, eps)


def _target(
    prediction: Prediction, schedule: Schedule, x0: Images, t: Timesteps, eps: Images
) -> Images:
    signal, noise = _signal_and_noise(schedule, t)
    return {"eps": eps, "v": signal * eps - noise * x0, "x0": x0}[prediction]


def _signal_and_noise(schedule: Schedule, t: Timesteps) -> tuple[Array, Array]:
    """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t)."""
    alpha_bar = schedule.alpha_bar
    return _at(np.sqrt(alpha_bar), t), _at(np.sqrt(1 - alpha_bar), t)


def _at(table: np.ndarray, t: Timesteps) -> Float[Array, "b 1 1 1"]:
    return jnp.asarray(table, jnp.float32)[t][:, None, None, None]


def _mean(x: Images) -> PerExample:
    return jnp.mean(x, axis=(1, 2, 3))
