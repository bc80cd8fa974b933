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
from diffussm_jax.diffusion.process import NoisedBatch
from diffussm_jax.parallel.mesh import replicated
from diffussm_jax.training import power_ema
from diffussm_jax.training.objective import (
    DeviceBatch,
    Frozen,
    for_evaluation,
    make_objective,
    noise_batch,
)
from diffussm_jax.training.optimizer import make_optimizer, without_frozen
from diffussm_jax.training.state import TrainState

Metrics = dict[str, Array]
# Of (state, batch, the parameters of the teacher if the config has one).
TrainStep = Callable[..., tuple[TrainState, Metrics]]


def make_train_step(
    config: Config,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    teacher: nnx.GraphDef | None = None,
) -> TrainStep:
    """The update of a step: loss, optimizer, EMA.

    Randomness is a function of (seed, step, index in the batch). The update of a step whose loss or
    gradient is not finite is dropped.

    Args:
        teacher: the structure of the teacher's network; the step then takes its parameters.
    """
    decay, widths = config.training.ema_decay, config.training.ema_lengths

    objective = make_objective(config, graphdef, teacher)

    @functools.partial(jax.grad, has_aux=True)
    def gradient(
        params: dict, frozen: Frozen, batch: NoisedBatch, step: Array
    ) -> tuple[Array, Metrics]:
        losses = objective(params, frozen, batch, step)
        means = jax.tree.map(jnp.mean, losses)
        return means["loss"], means

    def train_step(
        state: TrainState, batch: DeviceBatch, teacher_params: dict | None = None
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        noised = noise_batch(config, key, batch, config.training.label_dropout)
        grads, metrics = _mean_over_microbatches(
            lambda part: gradient(
                state.params, Frozen(state.ema, teacher_params), part, state.step
            ),
            noised,
            config.training.num_microbatches,
        )
        grads = without_frozen(config, grads)
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
    config: Config,
    graphdef: nnx.GraphDef,
    abstract: TrainState,
    mesh: Mesh,
    teacher: nnx.GraphDef | None = None,
) -> TrainStep:
    """The jitted train step: the state stays where `abstract` has it and is updated in place."""
    step = make_train_step(config, graphdef, make_optimizer(config, mesh), teacher)
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
    config: Config, graphdef: nnx.GraphDef
) -> Callable[[dict, DeviceBatch, Array], Metrics]:
    """The mean losses of given parameters on held-out batch number `index`.

    The noise is a function of (seed, index): the same at each evaluation.
    """
    objective = make_objective(for_evaluation(config), graphdef)

    def eval_step(params: dict, batch: DeviceBatch, index: Array) -> Metrics:
        key = jax.random.fold_in(jax.random.key(config.seed), index)
        noised = noise_batch(config, key, batch, 0.0)
        losses = objective(params, Frozen(params), noised, config.training.num_steps)
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
