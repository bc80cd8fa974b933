"""The Gaussian diffusion process: q, its posterior, the model's p and the training loss.

Ho et al. 2020 (DDPM), with the learned-range variance and the hybrid loss of Nichol & Dhariwal 2021
that ADM, DiT and DiffuSSM train with. `t` counts the steps of a schedule, which may be respaced;
the model gets `schedule.timesteps[t]`, the step of the full process.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from diffussm_jax.config import DiffusionConfig
from diffussm_jax.diffusion.path import Point
from diffussm_jax.diffusion.process import (
    Denoiser,
    NoisedBatch,
    PerExample,
    adaptive,
    draw_unit_time,
    mean_square,
)
from diffussm_jax.diffusion.schedule import Schedule, Spacing, make_schedule, respace
from diffussm_jax.shapes import Images, Labels, Timesteps


class ReverseStep(NamedTuple):
    """The model's p(x_{t-1} | x_t) and the estimates it came from."""

    mean: Images
    log_variance: Array
    x0: Images
    eps: Images


@dataclasses.dataclass(frozen=True, eq=False)
class Gaussian:
    """The process of DDPM, and what the model's output means in it; a `Process`.

    Attributes:
        config: how predictions are read, times drawn and losses weighted. With the variance
            "learned_range", that of p(x_{t-1} | x_t), the second half of the output channels
            interpolates between log beta-tilde_t and log beta_t; the others take one of the two.
            `clip_x0` holds while sampling: the loss does without, as those of iDDPM, ADM and DiT.
        schedule: the steps, respaced for sampling or not.
    """

    config: DiffusionConfig
    schedule: Schedule

    def draw_time(self, key: Key[Array, ""]) -> Array:
        """Draw a step."""
        num_steps = self.schedule.num_steps
        if self.config.time_sampling == "uniform":
            return jax.random.randint(key, (), 0, num_steps)
        return (num_steps * draw_unit_time(self.config, key)).astype(jnp.int32)

    def x_t(self, x0: Images, t: Timesteps, eps: Images) -> Images:
        """x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps (Ho et al., eq. 4)."""
        return self.at(t).mix(x0, eps)

    def conditions(self, t: Timesteps) -> Timesteps:
        """The step of the full process."""
        return jnp.asarray(self.schedule.timesteps)[t]

    def noise_level(self, conditions: Timesteps) -> PerExample:
        """sigma / alpha of steps of the full process."""
        full = make_schedule(self.config.schedule, self.config.num_steps)
        return jnp.asarray(full.noise_levels, jnp.float32)[conditions]

    def losses(
        self, model: Denoiser, batch: NoisedBatch, correction: Images | None = None
    ) -> dict[str, PerExample]:
        """The hybrid loss of each example: squared error, plus the bound for a learned variance.

        Returns:
            loss = weighted mse + vlb * num_steps / 1000, and mse and vlb. The bound is in bits per
            dimension and sees the mean through a stop-gradient, so that it trains the variance
            alone (Nichol & Dhariwal, eq. 16); `correction` leaves it as it is.
        """
        x0, t, point = batch.x0, batch.t, self.at(batch.t)
        x_t = point.mix(x0, batch.eps)
        prediction, log_variance = self._split(model(x_t, self.conditions(t), batch.y), t)
        target = point.target(self.config.prediction, x0, batch.eps)
        mse = mean_square(prediction - (target if correction is None else target + correction))
        loss = point.weight(self.config) * adaptive(self.config, mse)
        if self.config.variance != "learned_range":
            return {"loss": loss, "mse": mse}
        frozen = jax.lax.stop_gradient(prediction)
        p = self._reverse(frozen, log_variance, x_t, t, clip=False)
        vlb = variational_bound(self.schedule, p, x0, x_t, t)
        return {"loss": loss + vlb * self.schedule.num_steps / 1000, "mse": mse, "vlb": vlb}

    def reverse_step(
        self, model: Denoiser, x_t: Images, t: Timesteps, y: Labels | None
    ) -> ReverseStep:
        """Run the model once and form p(x_{t-1} | x_t) from its output."""
        prediction, log_variance = self._split(model(x_t, self.conditions(t), y), t)
        return self._reverse(prediction, log_variance, x_t, t, clip=self.config.clip_x0)

    def at(self, t: Timesteps) -> Point:
        """The path at steps t: alpha = sqrt(alpha_bar_t), sigma = sqrt(1 - alpha_bar_t)."""
        alpha_bar = self.schedule.alpha_bar
        alpha, sigma = _at(np.sqrt(alpha_bar), t), _at(np.sqrt(1 - alpha_bar), t)
        return Point(alpha, sigma, -sigma, alpha)

    def _split(self, output: Array, t: Timesteps) -> tuple[Images, Array]:
        """The prediction, and the log variance of p(x_{t-1} | x_t)."""
        smallest = _at(self.schedule.posterior_log_variance, t)
        largest = _at(np.log(self.schedule.betas), t)
        if self.config.variance == "learned_range":
            prediction, interpolation = jnp.split(output, 2, axis=-1)
            weight = (interpolation + 1) / 2
            return prediction, weight * largest + (1 - weight) * smallest
        return output, smallest if self.config.variance == "fixed_small" else largest

    def _reverse(
        self, prediction: Images, log_variance: Array, x_t: Images, t: Timesteps, *, clip: bool
    ) -> ReverseStep:
        point = self.at(t)
        x0 = point.x0(self.config.prediction, prediction, x_t)
        if clip:
            x0 = jnp.clip(x0, -1, 1)
        eps = (x_t - point.alpha * x0) / point.sigma
        mean = q_posterior_mean(self.schedule, x0, x_t, t)
        return ReverseStep(mean, jnp.broadcast_to(log_variance, mean.shape), x0, eps)


def make_gaussian(
    config: DiffusionConfig, *, num_steps: int | None = None, spacing: Spacing = "even"
) -> Gaussian:
    """The process of a config, respaced to `num_steps` if given."""
    schedule = make_schedule(config.schedule, config.num_steps)
    if num_steps is not None:
        schedule = respace(schedule, num_steps, spacing)
    return Gaussian(config, schedule)


def q_posterior_mean(schedule: Schedule, x0: Images, x_t: Images, t: Timesteps) -> Images:
    """The mean of q(x_{t-1} | x_t, x0) (Ho et al., eq. 7)."""
    c_x0, c_x = schedule.posterior_mean_coefficients
    return _at(c_x0, t) * x0 + _at(c_x, t) * x_t


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


def _at(table: np.ndarray, t: Timesteps) -> Float[Array, "b 1 1 1"]:
    return jnp.asarray(table, jnp.float32)[t][:, None, None, None]


def _mean(x: Images) -> PerExample:
    return jnp.mean(x, axis=(1, 2, 3))
