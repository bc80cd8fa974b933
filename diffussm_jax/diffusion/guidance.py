"""Guidance: move a prediction away from that of a worse model.

The worse model is the same one without labels (classifier-free guidance, Ho & Salimans 2022) or
another checkpoint (autoguidance, Karras et al. 2024). It is applied while sampling, or folded into
the model by training.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from diffussm_jax.config import GuidanceConfig
from diffussm_jax.diffusion.process import Denoiser, NoisedBatch, PerExample, Process
from diffussm_jax.shapes import Conditions, Images, Labels


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

    def guided(x_t: Images, t: Conditions, y: Labels | None) -> Array:
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

    def guided(x_t: Images, t: Conditions, y: Labels | None) -> Array:
        num = x_t.shape[-1] if channels is None else channels
        return _extrapolate(guide(x_t, t, y), model(x_t, t, y), scale, num)

    return guided


def within(
    interval: tuple[float, float], guided: Denoiser, model: Denoiser, process: Process
) -> Denoiser:
    """Use `guided` at noise levels sigma / alpha in (low, high] and `model` outside.

    Kynkaanniemi et al. 2024, eq. 6. All examples of a call must be at one time.
    """
    low, high = interval

    def denoise(x_t: Images, t: Conditions, y: Labels | None) -> Array:
        level = process.noise_level(t[:1])[0]
        return jax.lax.cond((low < level) & (level <= high), guided, model, x_t, t, y)

    return denoise


def told(model: Denoiser, scale: PerExample | float) -> Denoiser:
    """A model whose last condition is the scale of guidance that is folded into it."""

    def denoise(x_t: Images, t: Conditions, y: Labels | None) -> Array:
        return model(x_t, with_scale(t, scale), y)

    return denoise


def with_scale(t: Conditions, scale: PerExample | float) -> Float[Array, "b told"]:
    """The conditions of such a model: those of others, and the scale."""
    columns = t.astype(jnp.float32).reshape(len(t), -1)
    # 1 / scale is between 0 and 1; times 4 it is in the range of a flow's times.
    inverse = jnp.broadcast_to(4 / jnp.asarray(scale, jnp.float32), len(t))
    return jnp.concatenate([columns, inverse[:, None]], axis=-1)


def draw_scale(config: GuidanceConfig, key: Key[Array, ""]) -> Float[Array, ""] | None:
    """Draw the scale that an example is trained at; None where the model is told none.

    It is log-uniform between 1 and `max_scale` (iMF, arXiv 2512.02012).
    """
    if config.max_scale is None:
        return None
    return jnp.exp(jax.random.uniform(key, maxval=np.log(config.max_scale)))


def folded(
    config: GuidanceConfig, process: Process, teacher: Denoiser, batch: NoisedBatch, null_label: int
) -> Images:
    """What guidance adds to the target of a model that learns to be guided, with no gradient.

    Tang et al. 2025 (model guidance, arXiv 2502.12154, eq. 18) add w (m_c - m_u), where the
    predictions m are those of the EMA; their code and tables write the factor as w - 1. With m_c
    itself guided, that amounts to classifier-free guidance of scale 1 / (1 - w). Here the scale is
    that of classifier-free guidance and the factor 1 - 1 / scale, as in iMF (arXiv 2512.02012).

    Examples without a label, and those above `max_noise`, are not guided.

    Args:
        teacher: the EMA of the model, called with each example twice: with its label and without.
        null_label: the label that means "no label".
    """
    assert batch.y is not None
    conditions = process.conditions(batch.t)
    x_t, y = process.x_t(batch.x0, batch.t, batch.eps), batch.y
    scale = config.scale if batch.scale is None else batch.scale
    is_guided = (y != null_label) & (process.noise_level(conditions) <= config.max_noise)
    share = jnp.where(is_guided, 1 - 1 / scale, 0.0)
    # Side by side, so that both predictions of an example are made on its own device.
    pairs = jnp.stack([y, jnp.full_like(y, null_label)], axis=1).reshape(-1)
    output = teacher(jnp.repeat(x_t, 2, axis=0), jnp.repeat(conditions, 2, axis=0), pairs)
    output = output.reshape(-1, 2, *output.shape[1:])
    difference = (output[:, 0] - output[:, 1])[..., : x_t.shape[-1]]
    return jax.lax.stop_gradient(share[:, None, None, None] * difference)


def _extrapolate(worse: Array, better: Array, scale: float, channels: int) -> Array:
    w, b = worse[..., :channels], better[..., :channels]
    return jnp.concatenate([w + scale * (b - w), better[..., channels:]], axis=-1)
