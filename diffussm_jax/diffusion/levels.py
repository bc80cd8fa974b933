"""A sampler as steps between levels of noise, for what begins or ends at an image.

Level 0 is the image and the last level noise; at each of them x = alpha x0 + sigma eps. One step
leads from a level to the one below it. The steps are those of `samplers` and `flow_samplers`, so
that what is written for levels holds for every process.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffussm_jax.config import DiffusionConfig, SampleConfig
from diffussm_jax.diffusion import flow_samplers, samplers
from diffussm_jax.diffusion.flow import Flow
from diffussm_jax.diffusion.gaussian import Gaussian, make_gaussian
from diffussm_jax.diffusion.mean_flow import MeanFlow
from diffussm_jax.diffusion.process import Denoiser
from diffussm_jax.diffusion.samplers import START, State, image_noise
from diffussm_jax.diffusion.schedule import Schedule
from diffussm_jax.shapes import ImageKeys, Images, Labels

Level = Int[Array, ""] | int


class Given(NamedTuple):
    """What all steps share: the model, and the key and label of each image."""

    model: Denoiser
    keys: ImageKeys
    y: Labels | None


@dataclasses.dataclass(frozen=True, eq=False)
class Levels:
    """The levels that a sampler passes, and its step.

    Attributes:
        alpha: of each level from the image on, float64.
        sigma: the same.
        step: leads from a level, 1 or more, to the one below.
        ends_in_noise: whether nothing of an image is left at the last level.
    """

    alpha: Float[np.ndarray, " levels"]
    sigma: Float[np.ndarray, " levels"]
    step: Callable[[Given, State, Level], State]
    ends_in_noise: bool

    @property
    def last(self) -> int:
        """The highest level, and the number of steps from there to the image."""
        return len(self.alpha) - 1

    def mix(self, x0: Images, level: Level, eps: Images) -> Images:
        """The noised images x = alpha x0 + sigma eps."""
        alpha, sigma = (jnp.asarray(x, jnp.float32)[level] for x in (self.alpha, self.sigma))
        return alpha * x0 + sigma * eps

    def noised_up(self, x: Images, low: Level, high: Level, eps: Images) -> Images:
        """Noise x further, from level `low` to `high`, by q(x_high | x_low).

        x_high = r x_low + sqrt(sigma_high^2 - r^2 sigma_low^2) eps with r = alpha_high / alpha_low.
        """
        alpha, sigma = (jnp.asarray(x, jnp.float32) for x in (self.alpha, self.sigma))
        ratio = jnp.where(high == low, 1, alpha[high] / alpha[low])  # 0 / 0 at pure noise
        added = jnp.square(sigma[high]) - jnp.square(ratio * sigma[low])
        return ratio * x + jnp.sqrt(jnp.maximum(added, 0)) * eps

    def descend(self, given: Given, x: Images) -> Images:
        """Take every step from the last level to the image."""
        first = State(x, jnp.zeros_like(x))  # no sampler's first step reads an estimate before it
        levels = jnp.arange(self.last, 0, -1)
        end, _ = jax.lax.scan(lambda s, level: (self.step(given, s, level), None), first, levels)
        return end.x_t

    def redraw(self, given: Given, x0: Images) -> Images:
        """Noise images to the last level and draw them anew from there.

        SDEdit (Meng et al. 2022, arXiv 2108.01073). At the schedule's last level this is
        sampling, and x0 is not read.
        """
        eps = image_noise(given.keys, START, x0.shape[1:])
        return self.descend(given, eps if self.ends_in_noise else self.mix(x0, self.last, eps))


def make_levels(
    config: DiffusionConfig, options: SampleConfig, *, num_steps: int | None = None
) -> Levels:
    """The levels and the step of the sampler that `options` describe.

    Args:
        num_steps: how many of `options.steps` there are, counted from the image; None is all.
    """
    num_steps = options.steps if num_steps is None else num_steps
    is_whole = num_steps == options.steps
    if config.process == "gaussian":
        spacing = samplers.SPACINGS[options.sampler]
        whole = make_gaussian(config, num_steps=options.steps, spacing=spacing).schedule
        schedule = Schedule(whole.betas[:num_steps], whole.timesteps[:num_steps])
        step = samplers.make_step(options.sampler, eta=options.eta)
        return _of_gaussian(Gaussian(config, schedule), step, is_whole)
    flow = Flow(config) if config.process == "flow" else MeanFlow(config)
    flow_step = flow_samplers.make_step(options.sampler, form=options.sde)
    times = np.asarray(flow_samplers.sampling_times(config, options.steps), np.float64)[::-1]
    return _of_flow(flow, flow_step, times[: num_steps + 1], is_whole)


def _of_gaussian(diffusion: Gaussian, sampler_step: samplers.Step, is_whole: bool) -> Levels:
    alpha_bar = np.append(1.0, diffusion.schedule.alpha_bar)

    def step(given: Given, state: State, level: Level) -> State:
        return sampler_step(samplers.Problem(diffusion, *given), state, jnp.asarray(level) - 1)

    return Levels(np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar), step, is_whole)


def _of_flow(
    flow: Flow | MeanFlow, sampler_step: flow_samplers.Step, times: np.ndarray, is_whole: bool
) -> Levels:
    t = jnp.asarray(times, jnp.float32)

    def step(given: Given, state: State, level: Level) -> State:
        below = jnp.asarray(level) - 1
        interval = flow_samplers.Interval(t[level], t[below], below)
        x_s = sampler_step(flow_samplers.Problem(flow, *given), state.x_t, interval)
        return State(x_s, state.x0)

    return Levels(1 - times, times, step, is_whole)
