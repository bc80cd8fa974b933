"""The loss of a batch: what is drawn for each example, and what the network learns of it."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from diffussm_jax.config import Config
from diffussm_jax.data.transforms import from_uint8
from diffussm_jax.diffusion import create_process
from diffussm_jax.diffusion.guidance import draw_scale, folded, told
from diffussm_jax.diffusion.process import Denoiser, NoisedBatch, PerExample
from diffussm_jax.shapes import Images
from diffussm_jax.training.distillation import compare, weighted

DeviceBatch = dict[str, Array]  # the arrays of a source's examples [b, ...], on the devices
Losses = dict[str, PerExample]


class Frozen(NamedTuple):
    """The parameters of networks that a loss compares with and that it does not train.

    Attributes:
        ema: the average of the parameters that are trained, which folded guidance comes from.
        teacher: those of `training.teacher`; None without one.
    """

    ema: dict
    teacher: dict | None = None


# Of (params, those of frozen networks, the batch, the number of steps made) to the loss of each
# example.
Objective = Callable[[dict, Frozen, NoisedBatch, int | Array], Losses]


def make_objective(
    config: Config, graphdef: nnx.GraphDef, teacher: nnx.GraphDef | None = None
) -> Objective:
    """The loss that a config trains: `Process.losses`, to which guidance and a teacher add.

    Args:
        teacher: the structure of the teacher's network. None distills nothing.
    """
    process, guidance = create_process(config.diffusion), config.guidance

    def denoiser(params: dict, scale: PerExample | None) -> Denoiser:
        model = nnx.merge(graphdef, params)
        return model if scale is None else told(model, scale)

    def correction(ema: dict, batch: NoisedBatch, step: int | Array) -> Images | None:
        if not guidance.is_folded:
            return None
        scales = None  # with the label, and without: there is none to guide then
        if batch.scale is not None:
            scales = jnp.stack([batch.scale, jnp.ones_like(batch.scale)], axis=1).reshape(-1)

        def correct() -> Images:
            guide, null_label = denoiser(ema, scales), config.data.num_classes
            return folded(guidance, process, guide, batch, null_label=null_label)

        has_begun = step >= guidance.start_step
        return jax.lax.cond(has_begun, correct, lambda: jnp.zeros_like(batch.x0))

    def objective(params: dict, frozen: Frozen, batch: NoisedBatch, step: int | Array) -> Losses:
        frozen = jax.lax.stop_gradient(frozen)
        added = correction(frozen.ema, batch, step)
        if teacher is None:
            return process.losses(denoiser(params, batch.scale), batch, added)
        student, guide = nnx.merge(graphdef, params), nnx.merge(teacher, frozen.teacher)
        output, terms = compare(config.distill, process, student, guide, batch)
        losses = process.losses(lambda *_: output, batch, added)
        losses["loss"] = losses["loss"] + weighted(config.distill, terms)
        return losses | terms

    return objective


def for_evaluation(config: Config) -> Config:
    """The config whose objective measures a model: without adaptive weights, all near 1."""
    if config.diffusion.weighting != "adaptive":
        return config
    diffusion = dataclasses.replace(config.diffusion, weighting="none")
    return dataclasses.replace(config, diffusion=diffusion)


def noise_batch(
    config: Config, key: Array, batch: DeviceBatch, label_dropout: float
) -> NoisedBatch:
    """Draw times and noise, and drop labels, with a key of its own for each example."""
    num_classes = config.data.num_classes
    process = create_process(config.diffusion)

    def noise_example(index: Array, example: DeviceBatch) -> NoisedBatch:
        keys = jax.random.split(jax.random.fold_in(key, index), 4)
        t = process.draw_time(keys[0])
        x0 = clean_example(config, keys[3], example)
        eps = jax.random.normal(keys[1], x0.shape)
        is_dropped = jax.random.bernoulli(keys[2], label_dropout)
        y = jnp.where(is_dropped, num_classes, example["label"])
        scale = draw_scale(config.guidance, jax.random.fold_in(keys[0], 1))
        return NoisedBatch(x0, t, eps, y, scale)

    noised = jax.vmap(noise_example)(jnp.arange(len(batch["label"])), batch)
    return noised if num_classes else noised._replace(y=None)


def clean_example(config: Config, key: Array, example: DeviceBatch) -> Array:
    """x0 of one example, float32: pixels in [-1, 1], or scaled latents drawn from their moments."""
    if config.data.space == "pixels":
        return from_uint8(example["image"])
    mean, std = (example[name].astype(jnp.float32) for name in ("mean", "std"))
    return config.autoencoder.scale * (mean + std * jax.random.normal(key, mean.shape))
