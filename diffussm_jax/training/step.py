"""One training step and one evaluation step, as pure functions."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array

from diffussm_jax.config import Config, grid_shape
from diffussm_jax.diffusion.gaussian import Diffusion, training_loss
from diffussm_jax.training.state import TrainState

Metrics = dict[str, Array]
Batch = dict[str, Array]


def make_train_step(
    config: Config,
    graphdef: nnx.GraphDef,
    diffusion: Diffusion,
    optimizer: optax.GradientTransformation,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The update of DiT's recipe: loss, AdamW, EMA. Randomness is a function of (seed, step, index in the batch)."""
    decay = config.training.ema_decay

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        x_0, t, eps, labels = _draw(config, key, batch, config.training.label_dropout)

        def mean_losses(params: dict) -> tuple[Array, Metrics]:
            model = nnx.merge(graphdef, params)
            losses = training_loss(diffusion, model, x_0, t, eps, labels)
            means = jax.tree.map(jnp.mean, losses)
            return means["loss"], means

        grads, metrics = jax.grad(mean_losses, has_aux=True)(state.params)
        updates, optimizer_state = optimizer.update(
            grads, state.optimizer, state.params
        )
        params = optax.apply_updates(state.params, updates)
        ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state.ema, params)
        metrics["grad_norm"] = optax.tree.norm(grads)
        updated = TrainState(state.step + 1, params, ema, optimizer_state)
        if config.training.on_nonfinite == "skip":
            unchanged = dataclasses.replace(state, step=state.step + 1)
            is_finite = jnp.isfinite(metrics["loss"] + metrics["grad_norm"])
            updated = jax.tree.map(
                lambda new, old: jnp.where(is_finite, new, old), updated, unchanged
            )
        return updated, metrics

    return train_step


def make_eval_step(
    config: Config, graphdef: nnx.GraphDef, diffusion: Diffusion
) -> Callable[[dict, Batch, Array], Metrics]:
    """Mean losses of given parameters on a held-out batch, with the noise of batch `index`: the same at each call."""

    def eval_step(params: dict, batch: Batch, index: Array) -> Metrics:
        key = jax.random.fold_in(jax.random.key(config.seed), index)
        x_0, t, eps, labels = _draw(config, key, batch, 0.0)
        model = nnx.merge(graphdef, params)
        losses = training_loss(diffusion, model, x_0, t, eps, labels)
        return jax.tree.map(jnp.mean, losses)

    return eval_step


def _draw(config: Config, key: Array, batch: Batch, label_dropout: float):
    """Clean images, steps, noise and labels of a batch, from a key for each example."""
    num_classes = config.data.num_classes

    def draw_one(index, example):
        keys = jax.random.split(jax.random.fold_in(key, index), 4)
        t = jax.random.randint(keys[0], (), 0, config.diffusion.num_steps)
        eps = jax.random.normal(keys[1], grid_shape(config))
        dropped = jax.random.bernoulli(keys[2], label_dropout)
        label = jnp.where(dropped, num_classes, example["label"])
        return clean_example(config, keys[3], example), t, eps, label

    indices = jnp.arange(len(batch["label"]))
    x_0, t, eps, labels = jax.vmap(draw_one)(indices, batch)
    return x_0, t, eps, labels if num_classes else None


def clean_example(config: Config, key: Array, example: Batch) -> Array:
    """x_0 of one example, float32: pixels in [-1, 1], or latents drawn from their moments and scaled."""
    if config.data.space == "pixels":
        return example["image"].astype(jnp.float32) / 127.5 - 1
    mean, std = (example[name].astype(jnp.float32) for name in ("mean", "std"))
    return config.autoencoder.scale * (
        mean + std * jax.random.normal(key, grid_shape(config))
    )
