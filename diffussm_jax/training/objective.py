"""The loss of a batch: what is drawn for each example, and what the network learns of it."""

import dataclasses
from collections.abc import Callable

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

DeviceBatch = dict[str, Array]  # the arrays of a source's examples [b, ...], on the devices
Losses = dict[str, PerExample]
# Of (params, their EMA, the batch, the number of steps made) to the loss of each example.
Objective = Callable[[dict, dict, NoisedBatch, int | Array], Losses]


def make_objective(config: Config, graphdef: nnx.GraphDef) -> Objective:
    """The loss that a config trains (`Process.losses`), with guidance folded in where it says so.

    The EMA is what that guidance comes from; without it any value will do.
    """
    process, guidance = create_process(config.diffusion), config.guidance

    def denoiser(params: dict, scale: PerExample | None) -> Denoiser:
        model = nnx.merge(graphdef, params)
        return model if scale is None else told(model, scale)

    def objective(params: dict, ema: dict, batch: NoisedBatch, step: int | Array) -> Losses:
        model = denoiser(params, batch.scale)
        if not guidance.is_folded:
            return process.losses(model, batch)
        scales = None  # with the label, and without: there is none to guide then
        if batch.scale is not None:
            scales = jnp.stack([batch.scale, jnp.ones_like(batch.scale)], axis=1).reshape(-1)

        def correct() -> Images:
            teacher, null_label = denoiser(ema, scales), config.data.num_classes
            return folded(guidance, process, teacher, batch, null_label=null_label)

        has_begun = step >= guidance.start_step
        correction = jax.lax.cond(has_begun, correct, lambda: jnp.zeros_like(batch.x0))
        return process.losses(model, batch, correction)

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
        eps = jax.random.normal(keys[1], config.grid)
        is_dropped = jax.random.bernoulli(keys[2], label_dropout)
        y = jnp.where(is_dropped, num_classes, example["label"])
        scale = draw_scale(config.guidance, jax.random.fold_in(keys[0], 1))
        return NoisedBatch(clean_example(config, keys[3], example), t, eps, y, scale)

    noised = jax.vmap(noise_example)(jnp.arange(len(batch["label"])), batch)
    return noised if num_classes else noised._replace(y=None)


def clean_example(config: Config, key: Array, example: DeviceBatch) -> Array:
    """x0 of one example, float32: pixels in [-1, 1], or scaled latents drawn from their moments."""
    if config.data.space == "pixels":
        return from_uint8(example["image"])
    mean, std = (example[name].astype(jnp.float32) for name in ("mean", "std"))
    return config.autoencoder.scale * (mean + std * jax.random.normal(key, config.grid))
