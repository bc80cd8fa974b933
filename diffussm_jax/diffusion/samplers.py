"""Samplers: from noise to images by a trained denoiser.

Each image depends on its own key alone: x_T and the noise of every step come from
`fold_in(image_key, ...)`, so batch size and device count change nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffussm_jax.diffusion.gaussian import Denoiser, Diffusion, reverse_step
from diffussm_jax.shapes import ImageKeys, Images, Labels


def ddpm(
    diffusion: Diffusion,
    model: Denoiser,
    keys: ImageKeys,
    y: Labels | None,
    *,
    shape: tuple[int, int, int],
) -> Images:
    """Ancestral sampling over the steps of the schedule (Ho et al. 2020, algorithm 2).

    Args:
        diffusion: the process, respaced to the wanted number of steps.
        keys: one key an image.
        y: one label an image, None for an unconditional model.
        shape: (h, w, c) of an image.
    """

    def step(x_t, t):
        p = reverse_step(diffusion, model, x_t, _batch(t, len(keys)), y)
        noise = jnp.exp(0.5 * p.log_variance) * _noise(keys, t, shape)
        return p.mean + jnp.where(t > 0, noise, 0.0), None

    return _run(step, diffusion, keys, shape)


def ddim(
    diffusion: Diffusion,
    model: Denoiser,
    keys: ImageKeys,
    y: Labels | None,
    *,
    shape: tuple[int, int, int],
    eta: float = 0.0,
) -> Images:
    """Implicit sampling: deterministic at eta = 0, as noisy as DDPM at 1 (Song et al. 2021, eq. 12 and 16).

    Takes what `ddpm` takes.
    """
    alpha_bar_prev = jnp.asarray(diffusion.schedule.alpha_bar_prev, jnp.float32)
    sigmas = jnp.asarray(
        eta * np.sqrt(diffusion.schedule.posterior_variance), jnp.float32
    )

    def step(x_t, t):
        p = reverse_step(diffusion, model, x_t, _batch(t, len(keys)), y)
        direction = (
            jnp.sqrt(jnp.maximum(1 - alpha_bar_prev[t] - sigmas[t] ** 2, 0)) * p.eps
        )
        x_prev = jnp.sqrt(alpha_bar_prev[t]) * p.x0 + direction
        return (x_prev + sigmas[t] * _noise(keys, t, shape) if eta else x_prev), None

    return _run(step, diffusion, keys, shape)


SAMPLERS = {"ddpm": ddpm, "ddim": ddim}


def _run(
    step, diffusion: Diffusion, keys: ImageKeys, shape: tuple[int, int, int]
) -> Images:
    """Draw x_T and apply `step` from the last step of the schedule down to the first."""
    num_steps = diffusion.schedule.num_steps
    x_last = _noise(keys, num_steps, shape)
    return jax.lax.scan(step, x_last, jnp.arange(num_steps), reverse=True)[0]


def _noise(keys: ImageKeys, t: int | Array, shape: tuple[int, int, int]) -> Images:
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, t), shape))(
        keys
    )


def _batch(t: Array, size: int) -> Array:
    return jnp.full((size,), t)
