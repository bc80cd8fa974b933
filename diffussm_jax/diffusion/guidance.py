"""Guidance: move a prediction away from that of a worse model.

The worse model is the same one without labels (classifier-free guidance, Ho & Salimans 2022) or
another checkpoint (autoguidance, Karras et al. 2024).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffussm_jax.diffusion.gaussian import Denoiser
from diffussm_jax.shapes import Images, Labels, Timesteps


def classifier_free(
    model: Denoiser, cfg_scale: float, *, null_label: int, cfg_channels: int | None = None
) -> Denoiser:
    """Move the conditional prediction c away from the unconditional one u: u + cfg_scale (c - u).

    Both run as one batch of twice the size. A learned variance is the conditional one's.

    Args:
        model: a conditional denoiser.
        cfg_scale: 1 is the conditional model itself; the unconditional one is then not run.
        null_label: the label that means "no label".
        cfg_channels: how many channels to guide, from the first on. None guides all channels of the
            image; DiT's released code guides 3 of 4.
    """
    if cfg_scale == 1:
        return model

    def guided(x_t: Images, t: Timesteps, y: Labels | None) -> Array:
        assert y is not None
        labels = jnp.concatenate([y, jnp.full_like(y, null_label)])
        output = model(jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t]), labels)
        conditional, unconditional = jnp.split(output, 2)
        num = x_t.shape[-1] if cfg_channels is None else cfg_channels
        return _extrapolate(unconditional, conditional, cfg_scale, num)

    return guided


def autoguidance(
    model: Denoiser, guide: Denoiser, scale: float, *, channels: int | None = None
) -> Denoiser:
    """Move the model's prediction m away from that of a worse version g of it: g + scale (m - g).

    Karras et al. 2024, eq. 3. A learned variance is the model's.

    Args:
        guide: predicts the same as `model`, in the same process, for the same labels.
        channels: how many channels to guide, from the first on; None guides all of the image.
    """

    def guided(x_t: Images, t: Timesteps, y: Labels | None) -> Array:
        num = x_t.shape[-1] if channels is None else channels
        return _extrapolate(guide(x_t, t, y), model(x_t, t, y), scale, num)

    return guided


def within(
    interval: tuple[float, float], guided: Denoiser, model: Denoiser, noise_levels: np.ndarray
) -> Denoiser:
    """Use `guided` at noise levels in (low, high] and `model` outside.

    Kynkaanniemi et al. 2024, eq. 6. All examples of a call must be at one step.

    Args:
        interval: (low, high).
        noise_levels: sigma / alpha of each step of the full process.
    """
    low, high = interval
    is_inside = jnp.asarray((low < noise_levels) & (noise_levels <= high))

    def denoise(x_t: Images, t: Timesteps, y: Labels | None) -> Array:
        return jax.lax.cond(is_inside[t[0]], guided, model, x_t, t, y)

    return denoise


def _extrapolate(worse: Array, better: Array, scale: float, channels: int) -> Array:
    w, b = worse[..., :channels], better[..., :channels]
    return jnp.concatenate([w + scale * (b - w), better[..., channels:]], axis=-1)
