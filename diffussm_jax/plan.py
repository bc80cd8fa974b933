"""`--mode=plan`: what TPU slices or GPUs would do with a config, by their compilers."""

import dataclasses
import json
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from diffussm_jax.config import Config, GuidanceConfig
from diffussm_jax.config.parsing import with_fields
from diffussm_jax.files import write_text
from diffussm_jax.planning.estimate import chip_and_mesh, estimate, estimate_sampler
from diffussm_jax.planning.plans import Plan
from diffussm_jax.planning.report import report
from diffussm_jax.planning.search import num_devices, search
from diffussm_jax.planning.trials import best_of_each, describe, front
from diffussm_jax.workdir.ownership import require_ours

logger = logging.getLogger(__name__)


def plan(config: Config, workdir: Path | None) -> None:
    """Compile the train step and the sampler for `plan.topologies`, or `plan.topology`, and report.

    With `plan.search` it compiles the train step alone, in many settings, and reports the best.
    JSON goes to stdout and, if there is a work directory, into its plan.json or search.json.

    Raises:
        UserError: a topology is unknown, or the mesh does not divide it or the batch.
    """
    if workdir is not None:
        require_ours(workdir)
    config = _of_largest_bucket(config)
    topologies = config.plan.topologies or (config.plan.topology,)
    if config.plan.search:
        _search(config, topologies, workdir)
        return
    for topology in topologies:  # before the minutes that compiling takes
        chip_and_mesh(config, topology)
    plans = []
    for topology in topologies:
        plans.append(make_plan(config, topology))
        logger.info("%s", report(plans[-1]))
    _write([plan.to_dict() for plan in plans], workdir, "plan.json")


def _of_largest_bucket(config: Config) -> Config:
    """The config with the bucket of most pixels as its size, whose step takes the most memory."""
    sides = max(config.data.bucket_sides, key=math.prod, default=config.data.image_size)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, image_size=sides))


def _search(config: Config, topologies: Sequence[str], workdir: Path | None) -> None:
    for topology in topologies:
        num_devices(config, topology)
    trials = [trial for topology in topologies for trial in search(config, topology)]
    logger.info("%s", describe(trials))
    parts = {"best": best_of_each(trials), "front": front(trials), "trials": trials}
    values = {name: [trial.to_dict() for trial in part] for name, part in parts.items()}
    _write(values, workdir, "search.json")


def _write(value: Any, workdir: Path | None, name: str) -> None:
    """Write JSON to stdout, and to a file of the work directory if there is one."""
    text = json.dumps(value, indent=1) + "\n"
    sys.stdout.write(text)
    if workdir is not None:
        workdir.mkdir(parents=True, exist_ok=True)
        write_text(workdir / name, text)


def make_plan(config: Config, topology: str) -> Plan:
    """The plan of training and of sampling on one topology; raises as `plan`."""
    training = _plan_training(config, topology)
    plain = _plain(config)
    if plain != config:
        step_ms = estimate(with_fields(plain, training.fits_with or {}), topology).step_ms
        training = dataclasses.replace(training, plain_step_ms=step_ms)
    return dataclasses.replace(training, sampler=estimate_sampler(config, topology))


def _plain(config: Config) -> Config:
    """The config without what its objective adds to a plain one: a mean flow is a flow.

    A student has no teacher, and so trains all of its parameters.
    """
    diffusion = config.diffusion
    if diffusion.process == "mean_flow":
        diffusion = dataclasses.replace(diffusion, process="flow")
    training = dataclasses.replace(config.training, teacher=None)
    return dataclasses.replace(
        config, diffusion=diffusion, guidance=GuidanceConfig(), training=training
    )


def _plan_training(config: Config, topology: str) -> Plan:
    """The plan of a config; where it does not fit, with the first smaller config that does."""
    training = estimate(config, topology)
    if training.fits:
        return training
    smaller = training
    for changes in _smaller(config, training.chips):
        if changes.get("training.num_microbatches", math.inf) < _least_microbatches(smaller):
            continue
        logger.info("it does not fit; trying %s", changes)
        smaller = estimate(with_fields(config, changes), topology)
        if smaller.fits:
            return dataclasses.replace(training, fits_with=changes, bound=smaller.bound)
    return training


def _least_microbatches(plan: Plan) -> float:
    """The parts of a batch below which a plan cannot fit, if all temporary arrays were of them."""
    memory = plan.memory
    rest = memory.total_gib - memory.temporary_gib
    if rest >= memory.hbm_gib:
        return math.inf
    return plan.num_microbatches * memory.temporary_gib / (memory.hbm_gib - rest)


def _smaller(config: Config, num_chips: int) -> Iterator[dict[str, Any]]:
    """Changes that take less memory and give the same numbers, the cheapest first."""
    changes: dict[str, Any] = {}
    for remat in ("dots", "full"):
        if config.model.remat not in ("full", remat):
            yield {"model.remat": remat}
    if config.model.remat != "full":
        changes |= {"model.remat": "full"}
    sequence = config.mesh.sequence
    num_slices = config.plan.num_slices
    fsdp = num_chips // num_slices // sequence
    if config.mesh.fsdp < fsdp:
        changes |= {"mesh.data": num_slices, "mesh.fsdp": fsdp}
        yield dict(changes)
    num_microbatches = 2 * config.training.num_microbatches
    while config.training.batch_size % (num_slices * fsdp * num_microbatches) == 0:
        yield changes | {"training.num_microbatches": num_microbatches}
        num_microbatches *= 2
