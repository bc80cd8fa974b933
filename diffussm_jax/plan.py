"""`--mode=plan`: what TPU slices would do with a config, by the TPU compiler, on a machine without one."""

import dataclasses
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffussm_jax.config import Config
from diffussm_jax.files import write_text
from diffussm_jax.planning.estimate import Plan, SamplerPlan, estimate, estimate_sampler

logger = logging.getLogger(__name__)


def plan(config: Config, workdir: Path | None) -> None:
    """Compile the train step and the sampler for `plan.topologies`, or `plan.topology`, and report.

    JSON goes to stdout and the work directory.

    Raises:
        UserError: a topology is unknown, or the mesh does not divide it or the batch.
    """
    topologies = config.plan.topologies or (config.plan.topology,)
    plans = []
    for topology in topologies:
        plans.append(make_plan(config, topology))
        logger.info("%s", describe(plans[-1]))
    text = json.dumps([dataclasses.asdict(plan) for plan in plans], indent=1) + "\n"
    sys.stdout.write(text)
    if workdir is not None:
        workdir.mkdir(parents=True, exist_ok=True)
        write_text(workdir / "plan.json", text)


def make_plan(config: Config, topology: str) -> Plan:
    """What the compiler says of training and sampling on one topology; raises as `plan`."""
    found = _with_a_way_out(config, topology)
    return dataclasses.replace(found, sampler=estimate_sampler(config, topology))


def _with_a_way_out(config: Config, topology: str) -> Plan:
    """The plan of a config; where it does not fit, with the first of the smaller ones that does."""
    found = estimate(config, topology)
    if found.fits:
        return found
    for changes in _smaller(config, found.chips):
        logger.info("it does not fit; trying %s", changes)
        if estimate(_changed(config, changes), topology).fits:
            return dataclasses.replace(found, fits_with=changes)
    return found


def _smaller(config: Config, num_chips: int) -> Iterator[dict[str, Any]]:
    """Changes that take less memory and give the same numbers, the cheapest first."""
    changes: dict[str, Any] = {}
    for remat in ("dots", "full"):
        if config.model.remat not in ("full", remat):
            yield {"model.remat": remat}
    if config.model.remat != "full":
        changes |= {"model.remat": "full"}
    sequence = config.mesh.sequence
    fsdp = num_chips // sequence
    if config.mesh.fsdp < fsdp:
        changes |= {"mesh.data": 1, "mesh.fsdp": fsdp}
        yield dict(changes)
    num_microbatches = 2 * config.training.num_microbatches
    while config.training.batch_size % (fsdp * num_microbatches) == 0:
        yield changes | {"training.num_microbatches": num_microbatches}
        num_microbatches *= 2


def _changed(config: Config, changes: dict[str, Any]) -> Config:
    for name, value in changes.items():
        section, field = name.split(".")
        part = dataclasses.replace(getattr(config, section), **{field: value})
        config = dataclasses.replace(config, **{section: part})
    return config


def describe(plan: Plan) -> str:
    """A plan as a table for people."""
    axes = " x ".join(f"{name} {size}" for name, size in plan.mesh.items())
    rows = [
        f"{plan.topology}: {plan.chips} devices, mesh {axes}",
        f"  batch {plan.batch_size} in {plan.num_microbatches} part(s), remat {plan.remat}",
    ]
    if not plan.fits:
        needed = f"{plan.needed_gib or plan.total_gib:.1f} of {plan.hbm_gib:.0f} GiB"
        rows.append(f"  does not fit: a chip would need {needed}")
        if plan.fits_with:
            options = (f"--config.{name}={x}" for name, x in plan.fits_with.items())
            rows.append(f"  it fits with {' '.join(options)}")
        return "\n".join(rows + _describe_sampler(plan.sampler))
    traffic = (f"{kind} {size:.2f}" for kind, size in plan.collective_gb.items())
    rows += [
        f"  fits: {plan.total_gib:.1f} of {plan.hbm_gib:.0f} GiB a chip",
        f"    parameters {plan.parameters_gib:.2f}, EMA {plan.ema_gib:.2f}, optimizer {plan.optimizer_gib:.2f}",
        f"    activations, gradients and other temporary arrays {plan.temporary_gib:.2f}",
        f"  estimate: {plan.million_cycles:.0f}M cycles, {plan.step_ms:.0f} ms a step",
        f"    {plan.images_per_second:,.0f} images/s, MFU {plan.mfu:.1%}",
        f"    {plan.num_steps:,} steps: {plan.chip_hours / plan.chips:,.1f} hours, {plan.chip_hours:,.0f} chip-hours",
        f"  {plan.multiply_adds / 1e9:.2f} G multiply-adds an image (forward, without the SSM operator)",
        f"  collectives, GB a chip and step: {', '.join(traffic) or 'none'}",
        f"    {plan.collective_ms:.0f} ms of the links, of which what the products do not hide comes on top",
        f"  compiled in {plan.compile_seconds:.0f} s",
    ]
    return "\n".join(rows + _describe_sampler(plan.sampler))


def _describe_sampler(found: SamplerPlan | None) -> list[str]:
    if found is None:
        return []
    what = f"  sampling {found.batch_size} by {found.steps} steps of {found.sampler}, cfg_scale {found.cfg_scale:g}:"
    if not found.fits:
        return [f"{what} does not fit"]
    return [
        f"{what} {found.step_ms:.1f} ms a step",
        f"    {found.images_per_second:.1f} images/s before decoding, {found.total_gib:.1f} GiB a chip",
    ]
