"""Classifier-free guidance (Ho & Salimans 2022)."""

import jax.numpy as jnp

from diffussm_jax.diffusion.gaussian import Denoiser


def classifier_free(
    model: Denoiser,
    cfg_scale: float,
    *,
    null_label: int,
    cfg_channels: int | None = None,
) -> Denoiser:
    """Move the prediction away from the unconditional one: u + cfg_scale (c - u).

    Both halves run as one batch of twice the size. A learned variance is the conditional half's.

    Args:
        model: a conditional denoiser.
        cfg_scale: 1 is the conditional model itself, whose unconditional half is then not run.
        null_label: the label that means "no label".
        cfg_channels: guide the first so many channels only. None guides all channels of the image;
            DiT's released code guides 3 of 4.
    """
    if cfg_scale == 1:
        return model

    def guided(x_t, t, y):
        labels = jnp.concatenate([y, jnp.full_like(y, null_label)])
        output = model(jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t]), labels)
        conditional, unconditional = jnp.split(output, 2)
        num = x_t.shape[-1] if cfg_channels is None else cfg_channels
        c, u = conditional[..., :num], unconditional[..., :num]
        return jnp.concatenate(
            [u + cfg_scale * (c - u), conditional[..., num:]], axis=-1
        )

    return guided
