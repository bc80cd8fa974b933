"""One training step and one evaluation step, as pure functions."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array

from diffussm_jax.config import Config, TrainingConfig
from diffussm_jax.data.transforms import from_uint8
from diffussm_jax.diffusion.gaussian import Diffusion, make_diffusion, training_loss
from diffussm_jax.parallel.mesh import replicated
from diffussm_jax.training import power_ema
from diffussm_jax.training.optimizer import make_optimizer
from diffussm_jax.training.state import TrainState

Metrics = dict[str, Array]
Batch = dict[str, Array]
Drawn = tuple[Array, Array, Array, Array | None]  # x_0, t, eps, labels


def make_train_step(
    config: Config,
    graphdef: nnx.GraphDef,
    diffusion: Diffusion,
    optimizer: optax.GradientTransformation,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The update of DiT's recipe: loss, AdamW, EMA. Randomness is a function of (seed, step, index in the batch).

    The update of a step whose loss or gradient is not finite is dropped.
    """
    decay, widths = config.training.ema_decay, config.training.ema_lengths

    @functools.partial(jax.grad, has_aux=True)
    def gradient(params: dict, drawn: Drawn) -> tuple[Array, Metrics]:
        losses = training_loss(diffusion, nnx.merge(graphdef, params), *drawn)
        means = jax.tree.map(jnp.mean, losses)
        return means["loss"], means

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        drawn = draw(config, key, batch, config.training.label_dropout)
        grads, metrics = _mean_over_microbatches(
            lambda drawn: gradient(state.params, drawn), drawn, config.training.num_microbatches
        )
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state.ema, params)
        averages = tuple(
            power_ema.update(average, params, state.step + 1, width=width)
            for average, width in zip(state.averages, widths, strict=True)
        )
        metrics["grad_norm"] = optax.tree.norm(grads)
        updated = TrainState(state.step + 1, params, ema, optimizer_state, state.skipped, averages)
        is_finite = jnp.isfinite(metrics["loss"] + metrics["grad_norm"])
        state = _unless_nonfinite(config.training, state, updated, is_finite)
        metrics["skipped"], metrics["skipped_in_a_row"] = state.skipped
        return state, metrics

    return train_step


def compile_train_step(
    config: Config, graphdef: nnx.GraphDef, abstract: TrainState, mesh: Mesh
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The jitted train step: the state stays where `abstract` has it and is updated in place."""
    step = make_train_step(
        config, graphdef, make_diffusion(config.diffusion), make_optimizer(config.optimizer)
    )
    shardings = jax.tree.map(lambda a: a.sharding, abstract)
    return jax.jit(step, out_shardings=(shardings, replicated(mesh)), donate_argnums=0)


def _unless_nonfinite(
    config: TrainingConfig, state: TrainState, updated: TrainState, is_finite: Array
) -> TrainState:
    """`updated` where its loss and gradient are finite; else the state as it was, one step on, and the fault counted.

    After `max_skipped` in a row it stands still, so that the state that a run stops with is that before the fault.
    """
    total, in_a_row = state.skipped
    is_running = in_a_row < max_skipped(config)
    params, ema, optimizer, averages = jax.tree.map(
        lambda new, old: jnp.where(is_finite & is_running, new, old),
        (updated.params, updated.ema, updated.optimizer, updated.averages),
        (state.params, state.ema, state.optimizer, state.averages),
    )
    counted = jnp.stack([total + ~is_finite, jnp.where(is_finite, 0, in_a_row + 1)]).astype(
        jnp.int32
    )
    skipped = jnp.where(is_running, counted, state.skipped)
    step = state.step + is_running
    return TrainState(step, params, ema, optimizer, skipped, averages)


def max_skipped(config: TrainingConfig) -> int:
    """Dropped updates in a row that stop the run."""
    return 1 if config.on_nonfinite == "stop" else config.max_nonfinite


def make_eval_step(
    config: Config, graphdef: nnx.GraphDef, diffusion: Diffusion
) -> Callable[[dict, Batch, Array], Metrics]:
    """Mean losses of given parameters on a held-out batch, with the noise of batch `index`: the same at each call."""

    def eval_step(params: dict, batch: Batch, index: Array) -> Metrics:
        key = jax.random.fold_in(jax.random.key(config.seed), index)
        drawn = draw(config, key, batch, 0.0)
        losses = training_loss(diffusion, nnx.merge(graphdef, params), *drawn)
        return jax.tree.map(jnp.mean, losses)

    return eval_step


def _mean_over_microbatches(
    compute: Callable[[Drawn], Any], drawn: Drawn, num_microbatches: int
) -> Any:
    """The mean of `compute` over parts of a batch, one after another; each device keeps its own examples."""
    if num_microbatches == 1:
        return compute(drawn)
    parts = jax.tree.map(
        lambda x: x.reshape(-1, num_microbatches, *x.shape[1:]).swapaxes(0, 1), drawn
    )
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype),
        jax.eval_shape(compute, jax.tree.map(lambda x: x[0], parts)),
    )
    total, _ = jax.lax.scan(
        lambda total, part: (jax.tree.map(jnp.add, total, compute(part)), None), zeros, parts
    )
    return jax.tree.map(lambda x: x / num_microbatches, total)


def draw(config: Config, key: Array, batch: Batch, label_dropout: float) -> Drawn:
    """Clean images, steps, noise and labels of a batch, from a key for each example."""
    num_classes = config.data.num_classes

    def draw_one(index, example):
        keys = jax.random.split(jax.random.fold_in(key, index), 4)
        t = jax.random.randint(keys[0], (), 0, config.diffusion.num_steps)
        eps = jax.random.normal(keys[1], config.grid)
        dropped = jax.random.bernoulli(keys[2], label_dropout)
        label = jnp.where(dropped, num_classes, example["label"])
        return clean_example(config, keys[3], example), t, eps, label

    indices = jnp.arange(len(batch["label"]))
    x_0, t, eps, labels = jax.vmap(draw_one)(indices, batch)
    return x_0, t, eps, labels if num_classes else None


def clean_example(config: Config, key: Array, example: Batch) -> Array:
    """x_0 of one example, float32: pixels in [-1, 1], or latents drawn from their moments and scaled."""
    if config.data.space == "pixels":
        return from_uint8(example["image"])
    mean, std = (example[name].astype(jnp.float32) for name in ("mean", "std"))
    return config.autoencoder.scale * (mean + std * jax.random.normal(key, config.grid))
