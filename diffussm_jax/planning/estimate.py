"""The TPU compiler's estimate of a train step and of the sampler: memory, cycles, traffic.

Nothing here ran on a chip. Time is cycles over the clock; it leaves out collectives, and waiting
for memory where the compiler does not count that.
"""

import dataclasses
import functools
import logging
import math
import time
from typing import Any

import jax
from jax.sharding import Mesh

from diffussm_jax.config import Config
from diffussm_jax.ops.pallas_tpu import tiling_for
from diffussm_jax.parallel.mesh import check_divides, make_mesh
from diffussm_jax.planning import programs, tpu_compiler
from diffussm_jax.planning.chips import GIB, Chip, chip_of
from diffussm_jax.planning.kernel_cycles import kernel_cycles
from diffussm_jax.planning.multiply_adds import multiply_adds
from diffussm_jax.planning.plans import Memory, Plan, SamplerPlan, Speed
from diffussm_jax.planning.split_axes import split_axes
from diffussm_jax.planning.tpu_compiler import TooLarge
from diffussm_jax.shapes import ceil_div

logger = logging.getLogger(__name__)

# The forward pass takes one multiply-add for each weight and token, the backward pass two; a
# multiply-add is two operations.
FLOPS_PER_MULTIPLY_ADD = 6

# Several programs call the kernels on the same shapes, and each count takes a process of its own.
_kernel_cycles = functools.cache(kernel_cycles)


def chip_and_mesh(config: Config, topology: str) -> tuple[Chip, Mesh]:
    """The chip of a topology, and the mesh on which a run of the config would train there.

    Raises:
        UserError: the topology is unknown, or the mesh does not divide it or the batch.
    """
    devices = tpu_compiler.devices(topology, num_slices=config.plan.num_slices)
    chip, mesh = chip_of(devices[0]), make_mesh(config.mesh, devices)
    check_divides(config, mesh)
    return chip, mesh


def estimate(config: Config, topology: str) -> Plan:
    """The plan of training on one topology, whether it fits or not; raises as `chip_and_mesh`."""
    chip, mesh = chip_and_mesh(config, topology)
    work = multiply_adds(config).without_ssm
    logger.info("compiling the train step for %s, %s", topology, dict(mesh.shape))
    start = time.monotonic()
    step, state, batch = programs.train_step(config, mesh)
    memory = Memory(
        hbm_gib=chip.hbm_bytes / GIB,
        parameters_gib=_bytes_on_a_chip(state.params) / GIB,
        ema_gib=_bytes_on_a_chip((state.ema, state.averages)) / GIB,
        optimizer_gib=_bytes_on_a_chip(state.optimizer) / GIB,
    )
    plan = Plan(
        topology=topology,
        chips=mesh.size,
        mesh=dict(mesh.shape),
        num_steps=config.training.num_steps,
        batch_size=config.training.batch_size,
        remat=config.model.remat,
        num_microbatches=config.training.num_microbatches,
        multiply_adds=work,
        memory=memory,
        split_axes=split_axes(mesh, chip),
    )
    try:
        compiled = tpu_compiler.compile_lowered(step.lower(state, batch))
    except TooLarge as error:
        return dataclasses.replace(
            plan, memory=dataclasses.replace(memory, needed_gib=error.needed_gib)
        )
    compile_seconds = time.monotonic() - start
    temporary = compiled.memory_analysis().temp_size_in_bytes
    return dataclasses.replace(
        plan,
        memory=dataclasses.replace(
            memory, temporary_gib=temporary / GIB, total_gib=total_bytes(compiled) / GIB
        ),
        speed=_speed(plan, compiled.as_text(), config, mesh, chip),
        compile_seconds=compile_seconds,
    )


def estimate_sampler(config: Config, topology: str) -> SamplerPlan:
    """The plan of drawing one batch on one topology; raises as `chip_and_mesh`."""
    chip, mesh = chip_and_mesh(config, topology)
    options, batch_size = config.sample, programs.images_per_call(config.sample, mesh)
    plan = SamplerPlan(options.sampler, options.steps, options.cfg_scale, batch_size)
    logger.info("compiling the sampler for %s", topology)
    run, arguments = programs.sampler(config, mesh)
    try:
        compiled = tpu_compiler.compile_lowered(run.lower(*arguments))
    except TooLarge:
        return plan
    total = total_bytes(compiled)
    seconds = _cycles(compiled.as_text(), config, mesh, topology) / chip.clock_hz
    return dataclasses.replace(
        plan,
        fits=total < chip.hbm_bytes,
        total_gib=total / GIB,
        step_ms=1e3 * seconds / options.steps,
        images_per_second=batch_size / seconds,
    )


def _bytes_on_a_chip(tree: Any) -> int:
    return sum(
        x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree)
    )


def _speed(plan: Plan, text: str, config: Config, mesh: Mesh, chip: Chip) -> Speed:
    """Time and traffic of a train step, from the text of its program."""
    cycles = _cycles(text, config, mesh, plan.topology)
    seconds = cycles / chip.clock_hz
    flops = FLOPS_PER_MULTIPLY_ADD * plan.multiply_adds * plan.batch_size
    traffic = {kind: size / 1e9 for kind, size in tpu_compiler.collectives(text).items()}
    return Speed(
        million_cycles=cycles / 1e6,
        step_ms=1e3 * seconds,
        images_per_second=plan.batch_size / seconds,
        mfu=flops / (seconds * chip.peak_flops * plan.chips),
        chip_hours=plan.num_steps * seconds * plan.chips / 3600,
        collective_gb=traffic,
        collective_ms=1e12 * sum(traffic.values()) / chip.link_bandwidth,
    )


def total_bytes(compiled: Any) -> int:
    """What a compiled program holds at once: arguments, temporaries, results, code."""
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.generated_code_size_in_bytes
    )


def _cycles(text: str, config: Config, mesh: Mesh, topology: str) -> int:
    """The cycles of one run of a program: XLA's operations and the kernels, each at its batch."""
    counted, total = tpu_compiler.cycles(text), 0
    _, l, d = programs.local_tokens(config, mesh, rows=0)
    chunk = tiling_for(mesh.devices.flat[0].device_kind).chunk_size
    l = chunk * ceil_div(l, chunk)  # as the kernels pad it
    options = {"num_pairs": config.model.state_size // 2, "dtype": config.model.dtype}
    for call, times in counted.kernels.items():
        # The kernels read u first.
        each = _kernel_cycles(topology, call.num_elements // (l * d), l, d, **options)
        # Autodiff puts words of its own around a kernel's name.
        total += sum(times * cycles for name, cycles in each.items() if name in call.name)
    return counted.xla + total
