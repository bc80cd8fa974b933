"""Samplers: from noise to images by a trained denoiser, one function a step.

Each image depends on its own key alone: x_T and the noise of every step come from
`fold_in(image_key, ...)`, so batch size and device count change nothing.

In the equations x = alpha x_0 + sigma eps, t is the step a sampler leaves and s = t - 1 the one it goes to:
alpha_t^2 = alpha_bar_t, sigma_t^2 = 1 - alpha_bar_t, and before the first step alpha = 1, sigma = 0.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffussm_jax.diffusion.gaussian import Denoiser, Diffusion, ReverseStep, reverse_step
from diffussm_jax.diffusion.schedule import Schedule, Spacing
from diffussm_jax.shapes import ImageKeys, Images, Labels

Name = Literal["ddpm", "ddim", "dpm_solver++", "heun"]


# x_T's place among the numbers of an image's steps: the same at any number of them, and for any sampler.
START = 2**31 - 2


class State(NamedTuple):
    """What goes from step to step."""

    x_t: Images
    x0: Images  # the estimate at the step before, of which a multistep method makes use


class Drawing(NamedTuple):
    """What the steps of a drawing share."""

    diffusion: Diffusion
    model: Denoiser
    keys: ImageKeys
    y: Labels | None

    def estimate(self, x_t: Images, t: Array) -> ReverseStep:
        steps = jnp.full(len(self.keys), t)
        return reverse_step(self.diffusion, self.model, x_t, steps, self.y)

    def noise(self, t: int | Array, shape: tuple[int, ...]) -> Images:
        return image_noise(self.keys, t, shape)


Step = Callable[[Drawing, State, Array], State]


def ddpm(drawing: Drawing, state: State, t: Array) -> State:
    """A step of ancestral sampling (Ho et al. 2020, algorithm 2)."""
    p = drawing.estimate(state.x_t, t)
    noise = drawing.noise(t, p.mean.shape[1:])
    x_s = p.mean + jnp.where(t > 0, jnp.exp(0.5 * p.log_variance) * noise, 0.0)
    return State(x_s, p.x0)


def ddim(drawing: Drawing, state: State, t: Array, *, eta: float = 0.0) -> State:
    """A step of implicit sampling: deterministic at eta = 0, as noisy as DDPM at 1 (Song et al. 2021, eq. 12 and 16)."""
    schedule = drawing.diffusion.schedule
    p = drawing.estimate(state.x_t, t)
    # std^2 = eta^2 (1 - alpha_bar_s) / (1 - alpha_bar_t) beta_t
    std = eta * np.sqrt(schedule.posterior_variance)
    direction = np.sqrt(np.maximum(1 - schedule.alpha_bar_prev - std**2, 0))
    # x_s = alpha_s x_0 + sqrt(sigma_s^2 - std^2) eps + std noise
    alpha_s, direction, std = _at(t, np.sqrt(schedule.alpha_bar_prev), direction, std)
    x_s = alpha_s * p.x0 + direction * p.eps
    if eta:
        x_s = x_s + std * drawing.noise(t, x_s.shape[1:])
    return State(x_s, p.x0)


def dpm_solver_pp(drawing: Drawing, state: State, t: Array) -> State:
    """A step of DPM-Solver++(2M), of second order by one call of the model (Lu et al. 2022b, algorithm 2).

    The first step, which has none before it, and the last, whose log-SNR has no end, are of first order.
    """
    alpha_t, sigma_t, alpha_s, sigma_s = _alphas_and_sigmas(drawing.diffusion.schedule)
    # lambda = log(alpha / sigma), h = lambda_s - lambda_t; 1 / 2r = h / 2 h_before
    h = np.diff(np.log(alpha_t / sigma_t)[::-1])[::-1]  # of the steps 1 ..
    half_ratio = np.zeros(len(alpha_t))
    half_ratio[1:-1] = h[:-1] / (2 * h[1:])
    # D = (1 + 1/2r) x_0 - 1/2r x_0(before)
    # x_s = sigma_s / sigma_t x_t - alpha_s (exp(-h) - 1) D, where exp(-h) = sigma_s alpha_t / (alpha_s sigma_t)
    tables = half_ratio, sigma_s / sigma_t, alpha_s - sigma_s * alpha_t / sigma_t
    extrapolation, of_x_t, of_x0 = _at(t, *tables)
    p = drawing.estimate(state.x_t, t)
    x0 = p.x0 + extrapolation * (p.x0 - state.x0)
    return State(of_x_t * state.x_t + of_x0 * x0, p.x0)


def heun(drawing: Drawing, state: State, t: Array) -> State:
    """A step of Heun's method, of second order by two calls of the model (Karras et al. 2022, algorithm 1).

    It solves d(x/alpha) / d(sigma/alpha) = eps; the last step, to sigma = 0, is Euler's.
    """
    alpha_t, sigma_t, alpha_s, sigma_s = _alphas_and_sigmas(drawing.diffusion.schedule)
    # x_s / alpha_s = x_t / alpha_t + (sigma_s / alpha_s - sigma_t / alpha_t) eps
    of_x_t, of_eps = _at(t, alpha_s / alpha_t, sigma_s - alpha_s * sigma_t / alpha_t)
    p = drawing.estimate(state.x_t, t)
    euler = of_x_t * state.x_t + of_eps * p.eps

    def correct():
        q = drawing.estimate(euler, t - 1)
        return of_x_t * state.x_t + of_eps * (p.eps + q.eps) / 2

    return State(jax.lax.cond(t > 0, correct, lambda: euler), p.x0)


# Of the process, for each sampler; docs/sampling.md has what the others cost.
SPACINGS: dict[Name, Spacing] = {
    "ddpm": "even",
    "ddim": "even",
    "dpm_solver++": "trailing",
    "heun": "sigma",
}


def make_step(name: Name, *, eta: float = 0.0) -> Step:
    """The step of a sampler by its name; eta is DDIM's."""
    if name == "ddim":
        return functools.partial(ddim, eta=eta)
    return {"ddpm": ddpm, "dpm_solver++": dpm_solver_pp, "heun": heun}[name]


def draw(
    step: Step,
    diffusion: Diffusion,
    model: Denoiser,
    keys: ImageKeys,
    y: Labels | None,
    *,
    shape: tuple[int, int, int],
) -> Images:
    """Draw x_T and apply `step` from the last step of the schedule down to the first.

    Args:
        step: of a sampler, as `make_step` gives it.
        diffusion: the process, respaced to the wanted number of steps.
        keys: one key an image.
        y: one label an image, None for an unconditional model.
        shape: (h, w, c) of an image.
    """
    drawing = Drawing(diffusion, model, keys, y)
    num_steps = diffusion.schedule.num_steps
    x_last = drawing.noise(START, shape)
    first = State(x_last, jnp.zeros_like(x_last))
    last, _ = jax.lax.scan(
        lambda state, t: (step(drawing, state, t), None), first, jnp.arange(num_steps), reverse=True
    )
    return last.x_t


def image_noise(keys: ImageKeys, t: int | Array, shape: tuple[int, ...]) -> Images:
    """Standard normal noise of each image at step t of a respaced process; t = START is x_T's."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, t), shape))(keys)


def _alphas_and_sigmas(schedule: Schedule) -> tuple[np.ndarray, ...]:
    """alpha and sigma of each step t and of the step s that follows it."""
    squares = schedule.alpha_bar, schedule.alpha_bar_prev
    (t, s), (noise_t, noise_s) = squares, (1 - x for x in squares)
    return tuple(np.sqrt(x) for x in (t, noise_t, s, noise_s))


def _at(t: Array, *tables: np.ndarray) -> tuple[Array, ...]:
    """Float64 tables at one step, in float32."""
    return tuple(jnp.asarray(table, jnp.float32)[t] for table in tables)
