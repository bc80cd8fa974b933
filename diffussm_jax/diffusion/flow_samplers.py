"""Samplers of flows: from noise at t = 1 to images at t = 0. Each is the function of one step.

They follow dx / dt = v, or the stochastic equation with the same marginals (SiT, arXiv 2401.08740,
eq. 4, whose w is 2 D here). An image depends on its own key alone, as in `samplers`.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffussm_jax.config import DiffusionConfig
from diffussm_jax.diffusion.flow import Flow
from diffussm_jax.diffusion.mean_flow import MeanFlow
from diffussm_jax.diffusion.process import Denoiser, shifted
from diffussm_jax.diffusion.samplers import START, image_noise
from diffussm_jax.shapes import ImageKeys, Images, Labels

Form = Literal["sigma", "constant", "decreasing", "increasing_decreasing"]
Time = Float[Array, ""]  # that all images are at

# D(t) of SiT's code, by its names. Here t counts from the image, there from the noise.
DIFFUSION_COEFFICIENTS: dict[Form, Callable[[Time], Array]] = {
    "sigma": lambda t: t,
    "constant": jnp.ones_like,
    "decreasing": lambda t: jnp.square(1 - jnp.cos(np.pi * t)) / 4,
    "increasing_decreasing": lambda t: jnp.square(jnp.sin(np.pi * t)),
}


class Problem(NamedTuple):
    """What all steps share: the flow, the model, and the key and label of each image."""

    flow: Flow | MeanFlow
    model: Denoiser
    keys: ImageKeys
    y: Labels | None

    def velocity(self, x_t: Images, t: Time, s: Time) -> Images:
        """Call the model once: the velocity at t, or of a mean flow its average over [s, t]."""
        t, s = (jnp.full(len(self.keys), time) for time in (t, s))
        return self.flow.velocity(self.model, x_t, t, s, self.y)


class Interval(NamedTuple):
    """A step's way from time t to the earlier s, and how many steps come after it."""

    t: Time
    s: Time
    num_left: Array


Step = Callable[[Problem, Images, Interval], Images]


def euler(problem: Problem, x_t: Images, interval: Interval) -> Images:
    """One step of Euler's method: of first order for a flow, exact for a mean flow."""
    t, s, _ = interval
    return x_t - (t - s) * problem.velocity(x_t, t, s)


def heun(problem: Problem, x_t: Images, interval: Interval) -> Images:
    """One step of Heun's method, of second order with two calls; the last step is Euler's."""
    t, s, num_left = interval
    v = problem.velocity(x_t, t, s)
    x_s = x_t - (t - s) * v

    def correct() -> Images:
        return x_t - (t - s) * (v + problem.velocity(x_s, s, s)) / 2

    return jax.lax.cond(num_left > 0, correct, lambda: x_s)


def euler_maruyama(form: Form) -> Step:
    """The Euler-Maruyama method for dx = (v - D score) dt + sqrt(2 D) dw, run back in time.

    score = -eps / t, and eps = x_t + (1 - t) v. The last step is Euler's, without noise.
    """

    def step(problem: Problem, x_t: Images, interval: Interval) -> Images:
        t, s, num_left = interval
        v = problem.velocity(x_t, t, s)
        added = DIFFUSION_COEFFICIENTS[form](t) * (t - s)
        noise = jnp.sqrt(2 * added) * image_noise(problem.keys, num_left, x_t.shape[1:])
        change = noise - added * (x_t + (1 - t) * v) / t
        return x_t - (t - s) * v + jnp.where(num_left > 0, change, 0)

    return step


def make_step(name: str, *, form: Form = "sigma") -> Step:
    """The step of the sampler of this name; `form` is of the noise of euler_maruyama."""
    if name == "euler_maruyama":
        return euler_maruyama(form)
    return {"euler": euler, "heun": heun}[name]


def sampling_times(config: DiffusionConfig, num_steps: int) -> Float[Array, " times"]:
    """The times from 1 to 0 that `num_steps` steps lead through.

    The steps are of equal length, but those of shifted times are as short as these are dense.
    """
    t = jnp.linspace(1, 0, num_steps + 1)
    return shifted(t, config.time_shift) if config.time_sampling == "shifted" else t


def run_sampler(
    step: Step,
    flow: Flow | MeanFlow,
    model: Denoiser,
    keys: ImageKeys,
    y: Labels | None,
    *,
    num_steps: int,
    shape: tuple[int, int, int],
) -> Images:
    """Draw noise and apply `step` from t = 1 to t = 0, in `num_steps` steps.

    Args:
        step: a sampler's step, as `make_step` gives it.
        keys: the key of each image.
        y: the label of each image; None for an unconditional model.
        shape: (h, w, c) of an image.
    """
    problem = Problem(flow, model, keys, y)
    t = sampling_times(flow.config, num_steps)
    intervals = Interval(t[:-1], t[1:], jnp.arange(num_steps)[::-1])
    x_1 = image_noise(keys, START, shape)
    return jax.lax.scan(lambda x, i: (step(problem, x, i), None), x_1, intervals)[0]
