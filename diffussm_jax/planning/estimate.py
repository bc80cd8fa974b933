"""The compiler's word on a train step and on the sampler: memory, and time.

Nothing here ran on a chip. On TPUs time is an estimate, cycles over the clock; it leaves out
collectives, and waiting for memory within kernels, except for their first and last blocks. On GPUs
it is a bound (`gpu_bound.py`).
"""

import dataclasses
import logging
import math
from typing import Any

import jax
from jax.sharding import Mesh

from diffussm_jax.config import Config
from diffussm_jax.errors import UserError
from diffussm_jax.parallel.mesh import check_divides, make_mesh
from diffussm_jax.planning import gpu_compiler, programs, tpu_compiler
from diffussm_jax.planning.chips import GIB, Chip, chip_of
from diffussm_jax.planning.compiled import Compiled, compile_program
from diffussm_jax.planning.gpus import Gpu, gpu_of, is_gpus
from diffussm_jax.planning.multiply_adds import multiply_adds
from diffussm_jax.planning.plans import Memory, Plan, SamplerPlan, SamplerSpeed, Speed
from diffussm_jax.planning.split_axes import split_axes
from diffussm_jax.training.state import abstract_state

logger = logging.getLogger(__name__)

# The forward pass takes one multiply-add for each weight and token, the backward pass two; a
# multiply-add is two operations.
FLOPS_PER_MULTIPLY_ADD = 6


def chip_and_mesh(config: Config, topology: str) -> tuple[Chip | Gpu, Mesh]:
    """The chip of a topology, and the mesh on which a run of the config would train there.

    Raises:
        UserError: the topology is unknown, its compiler is not installed, or the mesh does not
            divide it or the batch.
    """
    chip: Chip | Gpu
    if is_gpus(topology):
        if config.plan.num_slices != 1:
            raise UserError("config.plan.num_slices is of TPUs: with GPUs it must be 1")
        devices = gpu_compiler.devices(topology)
        chip = gpu_of(devices[0])
    else:
        devices = tpu_compiler.devices(topology, num_slices=config.plan.num_slices)
        chip = chip_of(devices[0])
    mesh = make_mesh(config.mesh, devices)
    check_divides(config, mesh)
    return chip, mesh


def estimate(config: Config, topology: str) -> Plan:
    """The plan of training on one topology, whether it fits or not; raises as `chip_and_mesh`."""
    chip, mesh = chip_and_mesh(config, topology)
    work = multiply_adds(config).without_ssm
    logger.info("compiling the train step for %s, %s", topology, dict(mesh.shape))
    step, state, batch, teacher = programs.train_step(config, mesh)
    memory = Memory(
        hbm_gib=chip.usable_bytes / GIB,
        parameters_gib=_bytes_on_a_chip(state.params) / GIB,
        ema_gib=_bytes_on_a_chip((state.ema, state.averages)) / GIB,
        optimizer_gib=_bytes_on_a_chip(state.optimizer) / GIB,
        teacher_gib=_bytes_on_a_chip(teacher) / GIB,
        card_gib=chip.memory_bytes / GIB if isinstance(chip, Gpu) else None,
    )
    plan = Plan(
        topology=topology,
        chips=mesh.size,
        mesh=dict(mesh.shape),
        num_steps=config.training.num_steps,
        batch_size=config.training.batch_size,
        remat=config.model.remat,
        stack=programs.describe_stack(config, mesh),
        num_microbatches=config.training.num_microbatches,
        multiply_adds=work,
        memory=memory,
        split_axes=split_axes(mesh, chip) if isinstance(chip, Chip) else None,
    )
    compiled = compile_program(step, (state, batch, teacher), topology, mesh, chip, plan.batch_size)
    memory = dataclasses.replace(
        memory,
        needed_gib=compiled.needed_gib,
        temporary_gib=compiled.temporary_gib,
        total_gib=compiled.total_gib,
    )
    plan = dataclasses.replace(plan, memory=memory, compile_seconds=compiled.seconds)
    if isinstance(chip, Chip):
        return dataclasses.replace(plan, speed=_speed(plan, compiled, chip))
    if (least := compiled.bound) is None:
        return plan
    hours = plan.num_steps * least.step_ms * plan.chips / 3.6e6
    return dataclasses.replace(plan, bound=dataclasses.replace(least, chip_hours=hours))


def estimate_sampler(config: Config, topology: str) -> SamplerPlan:
    """The plan of drawing one batch on one topology; raises as `chip_and_mesh`."""
    chip, mesh = chip_and_mesh(config, topology)
    options, batch_size = config.sample, programs.images_per_call(config.sample, mesh)
    plan = SamplerPlan(options.sampler, options.steps, options.cfg_scale, batch_size)
    logger.info("compiling the sampler for %s", topology)
    run, arguments = programs.sampler(config, mesh)
    compiled = compile_program(
        run, arguments, topology, mesh, chip, batch_size, num_steps=options.steps
    )
    fits = 0 < compiled.total_gib < chip.usable_bytes / GIB
    plan = dataclasses.replace(plan, fits=fits, total_gib=compiled.total_gib, bound=compiled.bound)
    if (cycles := compiled.cycles) is None:
        return plan
    assert isinstance(chip, Chip)
    seconds = 1e6 * cycles.million_cycles / chip.clock_hz
    speed = SamplerSpeed(1e3 * seconds / options.steps, batch_size / seconds, cycles)
    return dataclasses.replace(plan, speed=speed)


def state_gib(config: Config, topology: str) -> float:
    """The memory of a chip that parameters, EMA and optimizer take; raises as `chip_and_mesh`."""
    _, mesh = chip_and_mesh(config, topology)
    return _bytes_on_a_chip(abstract_state(config, mesh)) / GIB


def _bytes_on_a_chip(tree: Any) -> int:
    return sum(
        x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree)
    )


def _speed(plan: Plan, compiled: Compiled, chip: Chip) -> Speed | None:
    """Time and traffic of a train step; None where it did not compile."""
    if (cycles := compiled.cycles) is None:
        return None
    seconds = 1e6 * cycles.million_cycles / chip.clock_hz
    flops = FLOPS_PER_MULTIPLY_ADD * plan.multiply_adds * plan.batch_size
    return Speed(
        cycles=cycles,
        step_ms=1e3 * seconds,
        images_per_second=plan.batch_size / seconds,
        mfu=flops / (seconds * chip.peak_flops * plan.chips),
        chip_hours=plan.num_steps * seconds * plan.chips / 3600,
        collective_gb=compiled.collective_gb,
        collective_ms=1e12 * sum(compiled.collective_gb.values()) / chip.link_bandwidth,
    )
