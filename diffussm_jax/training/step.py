"""One training step and one evaluation step, as pure functions."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

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
from diffussm_jax.shapes import Images, Labels, Timesteps
from diffussm_jax.training import power_ema
from diffussm_jax.training.optimizer import make_optimizer
from diffussm_jax.training.state import TrainState

Metrics = dict[str, Array]
DeviceBatch = dict[str, Array]  # the arrays of a source's examples [b, ...], on the devices
TrainStep = Callable[[TrainState, DeviceBatch], tuple[TrainState, Metrics]]


class NoisedBatch(NamedTuple):
    """The inputs of the loss, in the order of `training_loss`; y is None without classes."""

    x0: Images
    t: Timesteps
    eps: Images
    y: Labels | None


def make_train_step(
    config: Config,
    graphdef: nnx.GraphDef,
    diffusion: Diffusion,
    optimizer: optax.GradientTransformation,
) -> TrainStep:
    """The update of DiT's recipe: loss, AdamW, EMA.

    Randomness is a function of (seed, step, index in the batch). The update of a step whose loss or
    gradient is not finite is dropped.
    """
    decay, widths = config.training.ema_decay, config.training.ema_lengths

    @functools.partial(jax.grad, has_aux=True)
    def gradient(params: dict, batch: NoisedBatch) -> tuple[Array, Metrics]:
        losses = training_loss(diffusion, nnx.merge(graphdef, params), *batch)
        means = jax.tree.map(jnp.mean, losses)
        return means["loss"], means

    def train_step(state: TrainState, batch: DeviceBatch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        noised = noise_batch(config, key, batch, config.training.label_dropout)
        grads, metrics = _mean_over_microbatches(
            lambda part: gradient(state.params, part), noised, config.training.num_microbatches
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
) -> TrainStep:
    """The jitted train step: the state stays where `abstract` has it and is updated in place."""
    step = make_train_step(
        config, graphdef, make_diffusion(config.diffusion), make_optimizer(config.optimizer)
    )
    shardings = jax.tree.map(lambda a: a.sharding, abstract)
    return jax.jit(step, out_shardings=(shardings, replicated(mesh)), donate_argnums=0)


def _unless_nonfinite(
    config: TrainingConfig, state: TrainState, updated: TrainState, is_finite: Array
) -> TrainState:
    """Keep the update if it is finite; otherwise keep the old state, one step on, and count it.

    After `max_skipped` faults in a row nothing changes any more, so that a run stops with the state
    from before them.
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
    """The number of dropped updates in a row that stops the run."""
    return 1 if config.on_nonfinite == "stop" else config.max_nonfinite


def make_eval_step(
    config: Config, graphdef: nnx.GraphDef, diffusion: Diffusion
) -> Callable[[dict, DeviceBatch, Array], Metrics]:
    """The mean losses of given parameters on held-out batch number `index`.

    The noise is a function of (seed, index): the same at each evaluation.
    """

    def eval_step(params: dict, batch: DeviceBatch, index: Array) -> Metrics:
        key = jax.random.fold_in(jax.random.key(config.seed), index)
        noised = noise_batch(config, key, batch, 0.0)
        losses = training_loss(diffusion, nnx.merge(graphdef, params), *noised)
        return jax.tree.map(jnp.mean, losses)

    return eval_step


def _mean_over_microbatches(
    compute: Callable[[NoisedBatch], Any], batch: NoisedBatch, num_microbatches: int
) -> Any:
    """The mean of `compute` over parts of a batch, one after another.

    A part has examples of every device, so that each keeps its own.
    """
    if num_microbatches == 1:
        return compute(batch)
    parts = jax.tree.map(
        lambda x: x.reshape(-1, num_microbatches, *x.shape[1:]).swapaxes(0, 1), batch
    )
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype),
        jax.eval_shape(compute, jax.tree.map(lambda x: x[0], parts)),
    )
    total, _ = jax.lax.scan(
        lambda total, part: (jax.tree.map(jnp.add, total, compute(part)), None), zeros, parts
    )
    return jax.tree.map(lambda x: x / num_microbatches, total)


def noise_batch(
    config: Config, key: Array, batch: DeviceBatch, label_dropout: float
) -> NoisedBatch:
    """Draw steps and noise, and drop labels, with a key of its own for each example."""
    num_classes = config.data.num_classes

    def noise_example(index: Array, example: DeviceBatch) -> NoisedBatch:
        keys = jax.random.split(jax.random.fold_in(key, index), 4)
        t = jax.random.randint(keys[0], (), 0, config.diffusion.num_steps)
        eps = jax.random.normal(keys[1], config.grid)
        is_dropped = jax.random.bernoulli(keys[2], label_dropout)
        y = jnp.where(is_dropped, num_classes, example["label"])
        return NoisedBatch(clean_example(config, keys[3], example), t, eps, y)

    noised = jax.vmap(noise_example)(jnp.arange(len(batch["label"])), batch)
    return noised if num_classes else noised._replace(y=None)


def clean_example(config: Config, key: Array, example: DeviceBatch) -> Array:
    """x0 of one example, float32: pixels in [-1, 1], or scaled latents drawn from their moments."""
    if config.data.space == "pixels":
        return from_uint8(example["image"])
    mean, std = (example[name].astype(jnp.float32) for name in ("mean", "std"))
    return config.autoencoder.scale * (mean + std * jax.random.normal(key, config.grid))
