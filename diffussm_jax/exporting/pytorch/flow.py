"""Flows from noise at t = 1 to images at t = 0, and mean flows, which may take one step."""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from diffussm_jax.exporting.pytorch.process import PROCESSES, START, Denoiser, Noise, read_sampler

TIME_SCALE = 4.0  # the network is told t times this
MIN_ALPHA = 0.02  # x0 = (x - sigma eps) / alpha has no meaning in pure noise

# D(t) of the noise of euler_maruyama, by the names of `sample.sde`.
DIFFUSION_COEFFICIENTS: dict[str, Callable[[float], float]] = {
    "sigma": lambda t: t,
    "constant": lambda t: 1.0,
    "decreasing": lambda t: (1 - math.cos(math.pi * t)) ** 2 / 4,
    "increasing_decreasing": lambda t: math.sin(math.pi * t) ** 2,
}


class Flow:
    """dx / dt = v; a mean flow predicts the average of v over a step."""

    def __init__(self, diffusion: dict[str, Any]):
        self.diffusion = diffusion

    def draw(self, denoise: Denoiser, noise: Noise, options: dict[str, Any]) -> Tensor:
        is_mean = self.diffusion["process"] == "mean_flow"
        samplers = {"euler": euler} if is_mean else SAMPLERS
        step, num_steps = read_sampler(samplers, options["sampler"]), options["steps"]
        times = [self.shifted(1 - i / num_steps) for i in range(num_steps + 1)]
        x = noise(START)
        for index, (t, s) in enumerate(itertools.pairwise(times)):
            run = FlowStep(self, denoise, noise, options["sde"], t, s, num_steps - 1 - index)
            x = step(run, x)
        return x

    def shifted(self, t: float) -> float:
        """A time, moved towards noise as training did."""
        if self.diffusion["time_sampling"] != "shifted":
            return t
        shift = self.diffusion["time_shift"]
        return shift * t / (1 + (shift - 1) * t)

    def velocity(self, denoise: Denoiser, x_t: Tensor, t: float, s: float) -> Tensor:
        """Call the network once."""
        level = t / (1 - t) if t < 1 else math.inf
        told = [TIME_SCALE * t]
        if self.diffusion["process"] == "mean_flow":
            return denoise(x_t, [*told, TIME_SCALE * (t - s)], level)
        output = denoise(x_t, told, level)
        if self.diffusion["prediction"] == "v" and not self.diffusion["clip_x0"]:
            return output
        match self.diffusion["prediction"]:
            case "eps":
                x0 = (x_t - t * output) / max(1 - t, MIN_ALPHA)
            case "v":
                x0 = x_t - t * output
            case _:
                x0 = output
        if self.diffusion["clip_x0"]:
            x0 = x0.clamp(-1, 1)
        return (x_t - x0) / t


class FlowStep(NamedTuple):
    """A step from t to the earlier s, with `num_left` after it, and what it is made with."""

    flow: Flow
    denoise: Denoiser
    noise: Noise
    sde: str
    t: float
    s: float
    num_left: int

    def velocity(self, x_t: Tensor, t: float) -> Tensor:
        return self.flow.velocity(self.denoise, x_t, t, self.s)


def euler(step: FlowStep, x_t: Tensor) -> Tensor:
    """Euler's method, which is exact for a mean flow."""
    return x_t - (step.t - step.s) * step.velocity(x_t, step.t)


def heun(step: FlowStep, x_t: Tensor) -> Tensor:
    """Heun's method with two calls; the last step is Euler's."""
    h, v = step.t - step.s, step.velocity(x_t, step.t)
    x_s = x_t - h * v
    return x_t - h * (v + step.velocity(x_s, step.s)) / 2 if step.num_left else x_s


def euler_maruyama(step: FlowStep, x_t: Tensor) -> Tensor:
    """dx = (v - D score) dt + sqrt(2 D) dw with score = -eps / t; the last step is Euler's."""
    t, h, v = step.t, step.t - step.s, step.velocity(x_t, step.t)
    if step.num_left == 0:
        return x_t - h * v
    added = DIFFUSION_COEFFICIENTS[step.sde](t) * h
    eps = x_t + (1 - t) * v
    return x_t - h * v - added * eps / t + math.sqrt(2 * added) * step.noise(step.num_left)


SAMPLERS = {"euler": euler, "heun": heun, "euler_maruyama": euler_maruyama}
PROCESSES["flow"] = PROCESSES["mean_flow"] = Flow
