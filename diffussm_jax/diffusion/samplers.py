"""Samplers of the Gaussian process. Each is the function of one step from noise to images.

An image depends on its own key alone: x_T and the noise of every step come from
`fold_in(image_key, ...)`, so batch size and device count change nothing.

In the equations x = alpha x0 + sigma eps. A step leads from t to s = t - 1, where alpha_t^2 =
alpha_bar_t and sigma_t^2 = 1 - alpha_bar_t; the image, which the last step leads to, has alpha = 1
and sigma = 0.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffussm_jax.diffusion.gaussian import Gaussian, ReverseStep
from diffussm_jax.diffusion.process import Denoiser
from diffussm_jax.diffusion.schedule import Schedule, Spacing
from diffussm_jax.shapes import ImageKeys, Images, Labels

# Folded into an image's key for x_T, in place of a step: the same for any sampler and step count.
START = 2**31 - 2


class State(NamedTuple):
    """What one step hands to the next."""

    x_t: Images
    x0: Images  # the estimate of the step before, for multistep methods


class Problem(NamedTuple):
    """What all steps share: the process, the model, and the key and label of each image."""

    diffusion: Gaussian
    model: Denoiser
    keys: ImageKeys
    y: Labels | None

    def estimate(self, x_t: Images, t: Array) -> ReverseStep:
        """Call the model once, with all images at step t."""
        steps = jnp.full(len(self.keys), t)
        return self.diffusion.reverse_step(self.model, x_t, steps, self.y)

    def noise(self, t: int | Array, shape: tuple[int, ...]) -> Images:
        """Standard normal noise for step t, [b, *shape]."""
        return image_noise(self.keys, t, shape)


Step = Callable[[Problem, State, Array], State]


def ddpm(problem: Problem, state: State, t: Array) -> State:
    """One step of ancestral sampling (Ho et al. 2020, algorithm 2)."""
    p = problem.estimate(state.x_t, t)
    noise = problem.noise(t, p.mean.shape[1:])
    x_s = p.mean + jnp.where(t > 0, jnp.exp(0.5 * p.log_variance) * noise, 0.0)
    return State(x_s, p.x0)


def ddim(problem: Problem, state: State, t: Array, *, eta: float = 0.0) -> State:
    """One step of implicit sampling (Song et al. 2021, eq. 12 and 16).

    It is deterministic at eta = 0 and as noisy as DDPM at eta = 1.
    """
    schedule = problem.diffusion.schedule
    p = problem.estimate(state.x_t, t)
    # std^2 = eta^2 (1 - alpha_bar_s) / (1 - alpha_bar_t) beta_t
    std = eta * np.sqrt(schedule.posterior_variance)
    direction = np.sqrt(np.maximum(1 - schedule.alpha_bar_prev - std**2, 0))
    # x_s = alpha_s x0 + sqrt(sigma_s^2 - std^2) eps + std noise
    c_x0, c_eps, std = _at(t, np.sqrt(schedule.alpha_bar_prev), direction, std)
    x_s = c_x0 * p.x0 + c_eps * p.eps
    if eta:
        x_s = x_s + std * problem.noise(t, x_s.shape[1:])
    return State(x_s, p.x0)


def dpm_solver_pp(problem: Problem, state: State, t: Array) -> State:
    """One step of DPM-Solver++(2M), of second order with one call (Lu et al. 2022b, algorithm 2).

    Two steps are of first order: the first, which has no estimate before it, and the last, which
    leads to an infinite log-SNR.
    """
    alpha_t, sigma_t, alpha_s, sigma_s = _alphas_and_sigmas(problem.diffusion.schedule)
    # lambda = log(alpha / sigma), h = lambda_s - lambda_t; 1 / 2r = h / 2 h_before
    h = np.diff(np.log(alpha_t / sigma_t)[::-1])[::-1]  # of the steps from 1 on
    half_ratio = np.zeros(len(alpha_t))
    half_ratio[1:-1] = h[:-1] / (2 * h[1:])
    # D = (1 + 1/2r) x0 - 1/2r x0(before)
    # x_s = sigma_s / sigma_t x_t - alpha_s (exp(-h) - 1) D
    # exp(-h) = sigma_s alpha_t / (alpha_s sigma_t)
    tables = half_ratio, sigma_s / sigma_t, alpha_s - sigma_s * alpha_t / sigma_t
    extrapolation, c_x, c_x0 = _at(t, *tables)
    p = problem.estimate(state.x_t, t)
    x0 = p.x0 + extrapolation * (p.x0 - state.x0)
    return State(c_x * state.x_t + c_x0 * x0, p.x0)


def heun(problem: Problem, state: State, t: Array) -> State:
    """One step of Heun's method, of second order with two calls (Karras et al. 2022, algorithm 1).

    It solves d(x/alpha) / d(sigma/alpha) = eps. The last step, to sigma = 0, is Euler's.
    """
    alpha_t, sigma_t, alpha_s, sigma_s = _alphas_and_sigmas(problem.diffusion.schedule)
    # x_s / alpha_s = x_t / alpha_t + (sigma_s / alpha_s - sigma_t / alpha_t) eps
    c_x, c_eps = _at(t, alpha_s / alpha_t, sigma_s - alpha_s * sigma_t / alpha_t)
    p = problem.estimate(state.x_t, t)
    euler = c_x * state.x_t + c_eps * p.eps

    def correct() -> Images:
        q = problem.estimate(euler, t - 1)
        return c_x * state.x_t + c_eps * (p.eps + q.eps) / 2

    return State(jax.lax.cond(t > 0, correct, lambda: euler), p.x0)


# The steps of the full process that each sampler keeps; docs/sampling.md has what the others cost.
SPACINGS: dict[str, Spacing] = {
    "ddpm": "even",
    "ddim": "even",
    "dpm_solver++": "trailing",
    "heun": "sigma",
}


def make_step(name: str, *, eta: float = 0.0) -> Step:
    """The step of the sampler of this name; `eta` is DDIM's alone."""
    if name == "ddim":
        return functools.partial(ddim, eta=eta)
    return {"ddpm": ddpm, "dpm_solver++": dpm_solver_pp, "heun": heun}[name]


def run_sampler(
    step: Step,
    diffusion: Gaussian,
    model: Denoiser,
    keys: ImageKeys,
    y: Labels | None,
    *,
    shape: tuple[int, int, int],
) -> Images:
    """Draw x_T and apply `step` from the last step of the schedule down to the first.

    Args:
        step: a sampler's step, as `make_step` gives it.
        diffusion: the process, respaced to the number of steps to take.
        keys: the key of each image.
        y: the label of each image; None for an unconditional model.
        shape: (h, w, c) of an image.
    """
    problem = Problem(diffusion, model, keys, y)
    num_steps = diffusion.schedule.num_steps
    x_last = problem.noise(START, shape)
    first = State(x_last, jnp.zeros_like(x_last))
    last, _ = jax.lax.scan(
        lambda state, t: (step(problem, state, t), None), first, jnp.arange(num_steps), reverse=True
    )
    return last.x_t


def image_noise(keys: ImageKeys, t: int | Array, shape: tuple[int, ...]) -> Images:
    """Standard normal noise [b, *shape] for step t of a respaced process; t = START gives x_T."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, t), shape))(keys)


def _alphas_and_sigmas(schedule: Schedule) -> tuple[np.ndarray, ...]:
    """alpha_t, sigma_t, alpha_s and sigma_s of each step."""
    squares = schedule.alpha_bar, schedule.alpha_bar_prev
    (t, s), (noise_t, noise_s) = squares, (1 - x for x in squares)
    return tuple(np.sqrt(x) for x in (t, noise_t, s, noise_s))


def _at(t: Array, *tables: np.ndarray) -> tuple[Array, ...]:
    """Float64 tables at one step, in float32."""
    return tuple(jnp.asarray(table, jnp.float32)[t] for table in tables)
