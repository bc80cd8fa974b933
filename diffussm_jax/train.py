"""`--mode=train`: a complete training run."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from clu.parameter_overview import get_parameter_overview
from flax import nnx
from jax.sharding import Mesh

from diffussm_jax.config import Config
from diffussm_jax.config.learning_rules import check_distillation_has_effect
from diffussm_jax.data.latents import encoded_from, require_images_at_hand
from diffussm_jax.data.pipeline import open_source, stacks_of, train_batches
from diffussm_jax.data.sources import Source
from diffussm_jax.errors import Preempted
from diffussm_jax.evaluation.score import make_scorer
from diffussm_jax.parallel.distributed import is_first
from diffussm_jax.parallel.feed import prefetch
from diffussm_jax.parallel.mesh import check_divides, local_rows, make_mesh
from diffussm_jax.parallel.preemption import PreemptionNotice
from diffussm_jax.sampling.generator import Generator, make_decoder
from diffussm_jax.sampling.images import make_grid, save_grid
from diffussm_jax.training.held_out import make_evaluation
from diffussm_jax.training.log import TrainingLog, require_loggers
from diffussm_jax.training.objective import DeviceBatch
from diffussm_jax.training.optimizer import make_optimizer
from diffussm_jax.training.state import (
    TrainState,
    abstract_model,
    abstract_state,
    init_state,
    stack_in_training,
)
from diffussm_jax.training.step import TrainStep
from diffussm_jax.training.watchdog import Watchdog
from diffussm_jax.workdir import layout, same_data
from diffussm_jax.workdir.checkpoints import Checkpoints, Saved
from diffussm_jax.workdir.dump import dump_at_nonfinite
from diffussm_jax.workdir.ema_snapshots import save_snapshots
from diffussm_jax.workdir.inheritance import facts_of, inherit
from diffussm_jax.workdir.init_from import init_from
from diffussm_jax.workdir.leftovers import drop_after
from diffussm_jax.workdir.ownership import claimed
from diffussm_jax.workdir.record import make_record, require_same_position, warn_of_other_versions
from diffussm_jax.workdir.teacher import Teacher, compile_step, open_teacher, read_teacher_config

logger = logging.getLogger(__name__)

DONE = "%s is done: step %d of %d"
Scalars = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Findings:
    """What an action gives to log: numbers and uint8 images [h w c], by name."""

    scalars: Scalars = dataclasses.field(default_factory=dict)
    images: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


class Action(NamedTuple):
    """Something that a run does every so many steps, and after the last one.

    Attributes:
        act: function of the state and the number of the last step.
    """

    every: int
    act: Callable[[TrainState, int], Findings]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is set up: its data, devices, teacher and programs, but no state yet.

    Attributes:
        abstract: shape, type and sharding of each array of the state.
        periodic: what is done between some of the steps.
    """

    config: Config
    mesh: Mesh
    source: Source
    teacher: Teacher | None
    abstract: TrainState
    train_step: TrainStep
    periodic: Sequence[Action]


def train(config: Config, workdir: Path) -> None:
    """Train to `training.num_steps`, from the latest checkpoint in `workdir` if there is one.

    Raises:
        UserError: the work directory, the data or a checkpoint does not fit the config.
        NonFiniteError: the loss or the gradient of too many steps in a row was not finite.
        Preempted: the process was told to stop; its last step is saved.
        CheckpointError: a checkpoint could not be written, or not in time.
    """
    num_steps = config.training.num_steps
    require_loggers(config)
    if not layout.holds_run(workdir):  # the fields of a run that began are to stay
        check_distillation_has_effect(config)
    with contextlib.ExitStack() as stack:
        notice = stack.enter_context(PreemptionNotice())
        stack.enter_context(claimed(workdir))
        run = set_up(config, workdir)
        checkpoints = stack.enter_context(Checkpoints(workdir, config.checkpoint))
        watchdog = stack.enter_context(Watchdog(config.training.watchdog_seconds))
        state, record = first_state(run, checkpoints)
        start_step = record["step"]
        if start_step >= num_steps:
            logger.info(DONE, workdir, start_step, num_steps)
            return
        if is_first():
            drop_after(start_step, workdir)
        logger.info("\n%s", get_parameter_overview(run.abstract.params, include_stats=False))
        log = TrainingLog(config, workdir, record, stacks_of(run.source))
        stack.enter_context(log)
        stack.enter_context(dump_at_nonfinite(config, workdir, run.source, lambda: state))
        batches = log.timed(batches_from(run, start_step))

        for step in range(start_step + 1, num_steps + 1):
            state, metrics = run.train_step(state, next(batches))
            log.record(metrics)
            watchdog.watch(metrics)
            checkpoints.check()
            is_stopped = notice.reached()
            scores = run_periodic(run, state, step, log)
            is_save_due = is_due(step, config.checkpoint.every, num_steps)
            if is_save_due:
                log.report()  # raises where the run should end, before its state is saved
            if is_save_due or is_stopped:
                save(checkpoints, config, state, step, scores, log)
            if is_stopped:
                break
    if step < num_steps:
        raise Preempted(f"step {step} of {num_steps} is saved in {workdir}")
    logger.info(DONE, workdir, step, num_steps)


def set_up(config: Config, workdir: Path) -> Run:
    """Open the data, begin the work directory and make the programs. Every process must call it.

    Raises:
        UserError: the work directory or the data does not fit the config.
    """
    source = _open_source_of_run(config, workdir)
    mesh = make_mesh(config.mesh)
    check_divides(config, mesh)
    teacher = open_teacher(config, mesh, workdir)
    layout.begin(workdir, config)
    graphdef, _ = abstract_model(config, mesh, stack=stack_in_training(config))
    abstract = abstract_state(config, mesh)
    train_step = compile_step(config, graphdef, abstract, mesh, teacher)
    evaluate = make_evaluation(config, graphdef, mesh)
    if is_first():
        begins_with = facts_of(config, abstract.params, teacher)
        same_data.begin_data_facts(workdir, source.facts | begins_with)
    periodic = [
        Action(config.training.eval_every, lambda state, step: Findings(evaluate(state))),
        *_drawing_actions(config, workdir, graphdef, mesh),
        *_snapshot_actions(config, workdir),
    ]
    return Run(config, mesh, source, teacher, abstract, train_step, periodic)


def _open_source_of_run(config: Config, workdir: Path) -> Source:
    """Open the training split: of the images at hand, and of those that the run began with.

    The config of a teacher is read before.
    """
    goes_on = layout.holds_run(workdir)
    if goes_on:
        layout.require_same_run(workdir, config)
        same_data.require_same_folder(workdir, config)
    if config.training.teacher is not None:
        read_teacher_config(config)  # where it is missing, nobody need encode images first
    source = open_source(config, config.data.split)
    encoded = encoded_from(source)
    if encoded is not None and is_first():
        mend = same_data.mend_of_run(workdir, encoded) if goes_on else None
        require_images_at_hand(config, config.data.split, encoded, mend=mend)
    if goes_on:
        same_data.require_same_data(workdir, config, source.facts)
    return source


def first_state(run: Run, checkpoints: Checkpoints) -> Saved:
    """The newest checkpoint, or a new state and its record; each array where `run.abstract` has it.

    Raises:
        UserError: the checkpoints or the weights of `training.init_from` do not fit the config.
    """
    config = run.config
    saved = checkpoints.resume(run.abstract)
    if saved is not None:
        require_same_position(saved.record, config)
        warn_of_other_versions(saved.record)
        logger.info("resuming from step %d", saved.record["step"])
        return saved
    init = jax.jit(
        lambda: init_state(config, make_optimizer(config)),
        out_shardings=jax.tree.map(lambda a: a.sharding, run.abstract),
    )
    state = init()
    if config.training.init_from is not None:
        state = init_from(config, state, run.mesh, class_names=run.source.facts["class_names"])
    elif run.teacher is not None:
        state = inherit(config.model, state, run.teacher)
    return Saved(state, make_record(config, 0))


def batches_from(run: Run, step: int) -> Iterator[DeviceBatch]:
    """The batches of a run after `step` steps, on its devices."""
    size = run.config.training.batch_size
    rows = local_rows(run.mesh, size)
    batches = train_batches(run.config, run.source, start_step=step, rows=rows)
    return prefetch(run.mesh, batches, batch_size=size)


def run_periodic(run: Run, state: TrainState, step: int, log: TrainingLog) -> Scalars:
    """Do what is due after a step; log what it finds and return its scalars."""
    num_steps = run.config.training.num_steps
    due = [act for every, act in run.periodic if is_due(step, every, num_steps)]
    with log.pause():
        found = [act(state, step) for act in due]
    scalars = {name: value for x in found for name, value in x.scalars.items()}
    log.write(scalars, {name: image for x in found for name, image in x.images.items()})
    return scalars


def save(
    checkpoints: Checkpoints,
    config: Config,
    state: TrainState,
    step: int,
    scores: Scalars,
    log: TrainingLog,
) -> None:
    """Start to save a step, with the metrics that are not reported yet."""
    with log.pause():
        log.finish()  # a run that goes on from here does not write it again
        checkpoints.save(step, state, make_record(config, step, scores, log.unreported()))


def is_due(step: int, every: int, num_steps: int) -> bool:
    """Whether something is due after a step: every `every` steps, and after the last one."""
    return step % every == 0 or step == num_steps


def _drawing_actions(
    config: Config, workdir: Path, graphdef: nnx.GraphDef, mesh: Mesh
) -> Iterator[Action]:
    """Sample grids and scores, as far as the config asks for them."""
    training = config.training
    if training.sample_every is None and training.evaluate_every is None:
        return
    generator = Generator(config, graphdef, mesh, make_decoder(config, workdir, mesh))
    if training.sample_every is not None:
        yield Action(training.sample_every, partial(_draw_grid, config, workdir, generator))
    if training.evaluate_every is not None:
        score = make_scorer(config, workdir, generator)
        yield Action(training.evaluate_every, lambda state, step: Findings(score(state.ema)))


def _draw_grid(
    config: Config, workdir: Path, generator: Generator, state: TrainState, step: int
) -> Findings:
    images, labels = generator.draw(state.ema, config.sample)
    if is_first():
        save_grid(images, workdir / "samples" / f"step_{step:07d}.png", labels=labels)
    return Findings(images={"samples": make_grid(images, labels=labels)})


def _snapshot_actions(config: Config, workdir: Path) -> Iterator[Action]:
    """Snapshots of the power-function averages, if the config has any."""
    training = config.training
    if training.ema_lengths:
        keep = partial(_save_averages, workdir, training.ema_lengths)
        yield Action(training.ema_snapshot_every, keep)


def _save_averages(
    workdir: Path, widths: Sequence[float], state: TrainState, step: int
) -> Findings:
    save_snapshots(workdir, state.averages, widths, step=step)
    return Findings()
