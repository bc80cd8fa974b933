"""`--mode=train`: the whole of a training run."""

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from clu.parameter_overview import get_parameter_overview

from diffussm_jax.config import Config
from diffussm_jax.data.pipeline import eval_batches, open_source, train_batches
from diffussm_jax.diffusion.gaussian import make_diffusion
from diffussm_jax.errors import Preempted
from diffussm_jax.evaluation.score import make_scorer
from diffussm_jax.parallel.distributed import is_first
from diffussm_jax.parallel.feed import prefetch, shard_batch
from diffussm_jax.parallel.mesh import check_divides, local_rows, make_mesh, replicated
from diffussm_jax.parallel.preemption import PreemptionNotice
from diffussm_jax.sampling.generator import Generator, make_decoder
from diffussm_jax.sampling.images import save_grid
from diffussm_jax.training.log import TrainingLog
from diffussm_jax.training.optimizer import make_optimizer
from diffussm_jax.training.state import TrainState, abstract_model, abstract_state, init_state
from diffussm_jax.training.step import compile_train_step, make_eval_step
from diffussm_jax.training.watchdog import Watchdog
from diffussm_jax.workdir import layout
from diffussm_jax.workdir.checkpoints import Checkpoints
from diffussm_jax.workdir.dump import dump_at_nonfinite
from diffussm_jax.workdir.init_from import init_from
from diffussm_jax.workdir.record import (
    Record,
    make_record,
    require_same_position,
    warn_of_other_versions,
)
from diffussm_jax.workdir.snapshots import save_snapshots

logger = logging.getLogger(__name__)

Action = tuple[int, Callable[[TrainState, int], dict[str, float]]]


def train(config: Config, workdir: Path) -> None:
    """Train to `training.num_steps`, from the latest checkpoint in `workdir` if any.

    Raises:
        UserError: the work directory, the data or a checkpoint does not fit the config.
        NonFiniteError: the loss or the gradient of too many steps in a row was not finite.
        Preempted: the process was told to stop; the step in hand is saved.
        CheckpointError: a checkpoint could not be written, or not in time.
    """
    with PreemptionNotice() as notice:
        _train(config, workdir, notice)


def _train(config: Config, workdir: Path, notice: PreemptionNotice) -> None:
    source = open_source(config, config.data.split)
    mesh, num_steps = make_mesh(config.mesh), config.training.num_steps
    check_divides(config, mesh)
    layout.begin(workdir, config)
    graphdef, params = abstract_model(config, mesh)
    optimizer = make_optimizer(config.optimizer)
    abstract = abstract_state(config, mesh)
    train_step, evaluate = _compile_steps(config, graphdef, optimizer, abstract, mesh)
    if is_first():
        layout.write_data_facts(workdir, source.facts)
    at_times = _actions(config, workdir, graphdef, mesh, evaluate)

    with (
        Checkpoints(workdir, config.checkpoint) as checkpoints,
        Watchdog(config.training.watchdog_seconds) as watchdog,
    ):
        state, record = _first_state(config, checkpoints, optimizer, abstract)
        step = record["step"]
        if step == 0 and config.training.init_from is not None:
            names = source.facts["class_names"]
            state = init_from(config, state, mesh, class_names=names)
        if step >= num_steps:
            logger.info("%s is done: step %d of %d", workdir, step, num_steps)
            return
        logger.info("\n%s", get_parameter_overview(params, include_stats=False))
        size = config.training.batch_size
        rows = local_rows(mesh, size)
        batches = prefetch(
            mesh, train_batches(config, source, start_step=step, rows=rows), batch_size=size
        )
        is_preempted = False
        with (
            TrainingLog(config, workdir, record, num_examples=len(source)) as log,
            dump_at_nonfinite(config, workdir, source, lambda: state),
        ):
            while step < num_steps and not is_preempted:
                with log.waiting():
                    batch = next(batches)
                state, metrics = train_step(state, batch)
                step += 1
                log.record(metrics)
                watchdog.watch(metrics)
                checkpoints.check()
                is_preempted = notice.reached()
                scores: dict[str, float] = {}
                for every, action in at_times:
                    if _is_due(step, every, num_steps):
                        with log.pause():
                            scores |= action(state, step)
                log.write(scores)
                is_due = _is_due(step, config.checkpoint.every, num_steps)
                if is_due:
                    log.report()  # raises where a run should stop
                if is_due or is_preempted:
                    with log.pause():
                        record = make_record(config, step, scores, log.unreported())
                        checkpoints.save(step, state, record)
    if step < num_steps:
        raise Preempted(f"step {step} of {num_steps} is saved in {workdir}")
    logger.info("%s is done: step %d of %d", workdir, step, num_steps)


def _first_state(config, checkpoints, optimizer, abstract) -> tuple[TrainState, Record]:
    """What the newest checkpoint holds, or a new state, each array where `abstract` has it."""
    saved = checkpoints.resume(abstract)
    if saved is None:
        places = jax.tree.map(lambda a: a.sharding, abstract)
        init = jax.jit(lambda: init_state(config, optimizer), out_shardings=places)
        return init(), make_record(config, 0)
    require_same_position(saved.record, config)
    warn_of_other_versions(saved.record)
    logger.info("resuming from step %d", saved.record["step"])
    return saved


def _compile_steps(config: Config, graphdef, optimizer, abstract, mesh):
    """The jitted train step, and a function from the state to its held-out losses.

    Evaluation is of the EMA parameters; without a held-out split it gives {}.
    """
    diffusion = make_diffusion(config.diffusion)
    train_step = compile_train_step(config, graphdef, abstract, mesh)
    eval_step = jax.jit(make_eval_step(config, graphdef, diffusion), out_shardings=replicated(mesh))
    size = config.training.batch_size
    batches = _eval_batches(config, local_rows(mesh, size))

    def evaluate(state: TrainState, step: int) -> dict[str, float]:
        losses = [
            eval_step(state.ema, shard_batch(mesh, batch, batch_size=size), index)
            for index, batch in enumerate(batches)
        ]
        names = losses[0] if losses else {}
        return {f"eval_{name}": float(np.mean([x[name] for x in losses])) for name in names}

    return train_step, evaluate


def _eval_batches(config: Config, rows: np.ndarray) -> Sequence[dict[str, np.ndarray]]:
    if config.data.eval_split is None:
        return []
    source = open_source(config, config.data.eval_split)
    return eval_batches(config, source, rows=rows)


def _actions(config: Config, workdir: Path, graphdef, mesh, evaluate) -> list[Action]:
    """What is done every so many steps besides training: how many, and a function of state and step that gives what to log."""
    training = config.training
    actions: list[Action] = [(training.eval_every, evaluate)]
    if training.sample_every is not None or training.evaluate_every is not None:
        decode = make_decoder(config, workdir, mesh)
        generator = Generator(config, graphdef, mesh, decode)
    if training.sample_every is not None:
        draw = functools.partial(_draw_grid, config, workdir, generator)
        actions.append((training.sample_every, draw))
    if training.evaluate_every is not None:
        score = make_scorer(config, workdir, generator)
        actions.append((training.evaluate_every, lambda state, step: score(state.ema)))
    if training.ema_lengths:
        keep = functools.partial(_keep_averages, workdir, training.ema_lengths)
        actions.append((training.ema_snapshot_every, keep))
    return actions


def _draw_grid(config: Config, workdir: Path, generator, state, step: int) -> dict:
    images, labels = generator.draw(state.ema, config.sample)
    if is_first():
        path = workdir / "samples" / f"step_{step:07d}.png"
        save_grid(images, path, labels=labels)
    return {}


def _keep_averages(workdir: Path, widths: Sequence[float], state, step: int) -> dict:
    save_snapshots(workdir, state.averages, widths, step=step)
    return {}


def _is_due(step: int, every: int, num_steps: int) -> bool:
    """Every `every` steps, and after the last one."""
    return step % every == 0 or step == num_steps
