"""The TPU compiler's estimate of a training step and of the sampler: memory, cycles, traffic.

Nothing here ran on a chip. Time is cycles over the clock, without what collectives or waiting for memory add where the
compiler does not count it.
"""

import dataclasses
import functools
import logging
import math
import re
import time
from typing import Any

import jax
from jax.sharding import Mesh

from diffussm_jax.config import Config
from diffussm_jax.parallel.mesh import check_divides, make_mesh
from diffussm_jax.planning import programs, tpu_compiler
from diffussm_jax.planning.chips import GIB, Chip, chip_of
from diffussm_jax.planning.kernel_cycles import kernel_cycles
from diffussm_jax.planning.multiply_adds import multiply_adds

logger = logging.getLogger(__name__)

# Forward is one multiply-add a weight and token, backward two; a multiply-add is two operations.
FLOPS_PER_MULTIPLY_ADD = 6
_TOO_LARGE = re.compile(r"([\d.]+)([MG])\) exceeds available HBM")


@dataclasses.dataclass
class SamplerPlan:
    """What the compiler says of drawing one batch by `config.sample`, decoding excepted."""

    sampler: str
    steps: int
    cfg_scale: float
    batch_size: int
    fits: bool
    total_gib: float = 0.0  # of a chip
    step_ms: float = 0.0  # of one denoising step
    images_per_second: float = 0.0


@dataclasses.dataclass
class Plan:
    """What the compiler says of one train step on one slice; bytes are a chip's."""

    topology: str
    chips: int
    mesh: dict[str, int]
    num_steps: int
    batch_size: int
    remat: str
    num_microbatches: int
    fits: bool
    hbm_gib: float
    multiply_adds: int  # of an image's forward pass, without the SSM operator
    parameters_gib: float = 0.0
    ema_gib: float = 0.0
    optimizer_gib: float = 0.0
    needed_gib: float | None = None  # for temporary arrays, where they do not fit
    fits_with: dict[str, Any] | None = None  # the smallest change that does
    # The rest stays 0 where the program does not compile for lack of memory.
    temporary_gib: float = 0.0  # activations and gradients among them
    total_gib: float = 0.0
    million_cycles: float = 0.0
    step_ms: float = 0.0
    images_per_second: float = 0.0
    mfu: float = 0.0
    chip_hours: float = 0.0  # of all steps
    # that arrive at a chip in a step, by kind
    collective_gb: dict[str, float] = dataclasses.field(default_factory=dict)
    collective_ms: float = 0.0  # on the links, if nothing waits; not in step_ms
    compile_seconds: float = 0.0
    sampler: SamplerPlan | None = None  # where it was asked for


def estimate(config: Config, topology: str) -> Plan:
    """The plan of one topology, whether it fits or not.

    Raises:
        UserError: the topology is unknown, or the mesh does not divide it or the batch.
    """
    chip, mesh = _chip_and_mesh(config, topology)
    check_divides(config, mesh)
    found = Plan(
        topology=topology,
        chips=mesh.size,
        mesh=dict(mesh.shape),
        num_steps=config.training.num_steps,
        batch_size=config.training.batch_size,
        remat=config.model.remat,
        num_microbatches=config.training.num_microbatches,
        fits=False,
        hbm_gib=chip.hbm_bytes / GIB,
        multiply_adds=multiply_adds(config).without_ssm,
    )
    logger.info("compiling the train step for %s, %s", topology, dict(mesh.shape))
    start = time.monotonic()
    step, state, batch = programs.train_step(config, mesh)
    found.parameters_gib = _bytes_on_a_chip(state.params) / GIB
    found.ema_gib = _bytes_on_a_chip((state.ema, state.averages)) / GIB
    found.optimizer_gib = _bytes_on_a_chip(state.optimizer) / GIB
    compiled = _compile(step, state, batch)
    if isinstance(compiled, float):
        found.needed_gib = compiled
        return found
    found.compile_seconds = time.monotonic() - start
    _add_estimates(found, compiled, config, mesh, chip)
    return found


def estimate_sampler(config: Config, topology: str) -> SamplerPlan:
    """What drawing one batch would take; raises as `estimate`."""
    chip, mesh = _chip_and_mesh(config, topology)
    options, batch_size = config.sample, programs.images_per_call(config.sample, mesh)
    found = SamplerPlan(options.sampler, options.steps, options.cfg_scale, batch_size, fits=False)
    logger.info("compiling the sampler for %s", topology)
    run, arguments = programs.sampler(config, mesh)
    compiled = _compile(run, *arguments)
    if isinstance(compiled, float):
        return found
    total, text = total_bytes(compiled), compiled.as_text()
    found.total_gib, found.fits = total / GIB, total < chip.hbm_bytes
    rows = programs.rows_of_a_call(config, mesh)
    seconds = _cycles(text, config, mesh, topology, rows) / chip.clock_hz
    found.step_ms = 1e3 * seconds / options.steps
    found.images_per_second = batch_size / seconds
    return found


def _chip_and_mesh(config: Config, topology: str) -> tuple[Chip, Mesh]:
    devices = tpu_compiler.devices(topology, num_slices=config.plan.num_slices)
    return chip_of(devices[0]), make_mesh(config.mesh, devices)


def _compile(function: Any, *arguments: Any) -> Any:
    """The compiled program; where it needs more than a chip has, the GiB that it needs."""
    try:
        return function.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if (needed := needed_gib(error)) is not None:
            return needed
        raise


def needed_gib(error: jax.errors.JaxRuntimeError) -> float | None:
    """The GiB that a program needs which the compiler refused for lack of memory; None where it failed for else."""
    if match := _TOO_LARGE.search(str(error)):
        return float(match[1]) * (1.0 if match[2] == "G" else 1 / 1024)
    return None


def _bytes_on_a_chip(tree: Any) -> int:
    return sum(
        x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree)
    )


def _add_estimates(found: Plan, compiled: Any, config: Config, mesh: Mesh, chip: Chip) -> None:
    """Memory, time and traffic of a step that the compiler took."""
    total, text = total_bytes(compiled), compiled.as_text()
    found.temporary_gib = compiled.memory_analysis().temp_size_in_bytes / GIB
    found.total_gib, found.fits = total / GIB, total < chip.hbm_bytes
    rows = found.batch_size // found.num_microbatches
    cycles = _cycles(text, config, mesh, found.topology, rows)
    seconds = cycles / chip.clock_hz
    flops = FLOPS_PER_MULTIPLY_ADD * found.multiply_adds * found.batch_size
    found.million_cycles = cycles / 1e6
    found.step_ms = 1e3 * seconds
    found.images_per_second = found.batch_size / seconds
    found.mfu = flops / (seconds * chip.peak_flops * found.chips)
    found.chip_hours = found.num_steps * seconds * found.chips / 3600
    found.collective_gb = {
        kind: size / 1e9 for kind, size in tpu_compiler.collectives(text).items()
    }
    found.collective_ms = 1e12 * sum(found.collective_gb.values()) / chip.link_bandwidth


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


def _cycles(text: str, config: Config, mesh: Mesh, topology: str, rows: int) -> int:
    """XLA's operations and the kernels of one run of a program."""
    counted = tpu_compiler.cycles(text)
    if not counted.kernels:
        return counted.xla
    b, l, d = programs.local_tokens(config, mesh, rows)
    each = _kernel_cycles(
        topology, b, l, d, num_pairs=config.model.state_size // 2, dtype=config.model.dtype
    )
    return counted.xla + sum(
        times * each[name]
        for called, times in counted.kernels.items()
        for name in each
        if name in called
    )


_kernel_cycles = functools.cache(kernel_cycles)
