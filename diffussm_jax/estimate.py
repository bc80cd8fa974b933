"""The TPU compiler's estimate of a training step: memory, cycles, traffic.

Nothing here ran on a chip. Time is cycles over the clock, without what collectives or waiting for memory add where the
compiler does not count it.
"""

import dataclasses
import logging
import math
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffussm_jax.config import Config, grid_shape
from diffussm_jax.diffusion.gaussian import make_diffusion
from diffussm_jax.flops import dense_multiply_adds
from diffussm_jax.ops.chunked import num_blocks_for
from diffussm_jax.ops.pallas_tpu import refusal, tiling_for
from diffussm_jax.ops.s4d import Choice
from diffussm_jax.parallel import tpu_compiler
from diffussm_jax.parallel.chips import Chip, chip_of
from diffussm_jax.parallel.kernel_cycles import kernel_cycles
from diffussm_jax.parallel.mesh import (
    batch_shardings,
    check_divides,
    make_mesh,
    replicated,
)
from diffussm_jax.training.optimizer import make_optimizer
from diffussm_jax.training.state import TrainState, abstract_model, abstract_state
from diffussm_jax.training.step import make_train_step

logger = logging.getLogger(__name__)

GIB = 2**30
# Forward is one multiply-add a weight and token, backward two; a multiply-add is two operations.
FLOPS_PER_MULTIPLY_ADD = 6
_TOO_LARGE = re.compile(r"([\d.]+)([MG])\) exceeds available HBM")


@dataclasses.dataclass
class Plan:
    """What the compiler says of one train step on one slice; bytes are a chip's."""

    topology: str
    chips: int
    mesh: dict[str, int]
    batch_size: int
    remat: str
    num_microbatches: int
    fits: bool
    hbm_gib: float
    multiply_adds: int  # of an image's forward pass, dense layers
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
    # that arrive at a chip in a step, by kind
    collective_gb: dict[str, float] = dataclasses.field(default_factory=dict)
    compile_seconds: float = 0.0


def estimate(config: Config, topology: str) -> Plan:
    """The plan of one topology, whether it fits or not.

    Raises:
        UserError: the topology is unknown, or the mesh does not divide it or the batch.
    """
    devices = tpu_compiler.devices(topology, num_slices=config.plan.num_slices)
    chip, mesh = chip_of(devices[0]), make_mesh(config.mesh, devices)
    check_divides(
        mesh,
        batch_size=config.training.batch_size,
        num_microbatches=config.training.num_microbatches,
        height=grid_shape(config)[0],
        patch_size=config.model.patch_size,
    )
    found = Plan(
        topology=topology,
        chips=len(devices),
        mesh=dict(mesh.shape),
        batch_size=config.training.batch_size,
        remat=config.model.remat,
        num_microbatches=config.training.num_microbatches,
        fits=False,
        hbm_gib=chip.hbm_bytes / GIB,
        multiply_adds=dense_multiply_adds(config),
    )
    logger.info("compiling the train step for %s, %s", topology, dict(mesh.shape))
    start = time.monotonic()
    step, state, batch = _train_step(config, mesh)
    for name in ("params", "ema", "optimizer"):
        size = _bytes_on_a_chip(getattr(state, name)) / GIB
        setattr(found, "parameters_gib" if name == "params" else f"{name}_gib", size)
    try:
        compiled = step.lower(state, batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if match := _TOO_LARGE.search(str(error)):
            scale = 1.0 if match[2] == "G" else 1 / 1024
            found.needed_gib = float(match[1]) * scale
            return found
        raise
    found.compile_seconds = time.monotonic() - start
    _add_estimates(found, compiled, config, chip)
    return found


def _train_step(config: Config, mesh) -> tuple[Any, TrainState, dict[str, Any]]:
    """The jitted step that training runs, and its abstract arguments."""
    optimizer = make_optimizer(config.optimizer)
    graphdef, _ = abstract_model(config, mesh, implementation=_operator(config, mesh))
    state = abstract_state(config, optimizer, mesh)
    step = jax.jit(
        make_train_step(
            config, graphdef, make_diffusion(config.diffusion), optimizer
        ),
        out_shardings=(jax.tree.map(lambda a: a.sharding, state), replicated(mesh)),
        donate_argnums=0,
    )  # fmt: skip
    return step, state, _abstract_batch(config, mesh)


def _abstract_batch(config: Config, mesh) -> dict[str, jax.ShapeDtypeStruct]:
    shape = config.training.batch_size, *grid_shape(config)
    batch = {"label": jax.ShapeDtypeStruct(shape[:1], jnp.int32)}
    if config.data.space == "pixels":
        batch["image"] = jax.ShapeDtypeStruct(shape, jnp.uint8)
    else:
        batch |= {x: jax.ShapeDtypeStruct(shape, jnp.float16) for x in ("mean", "std")}
    places = batch_shardings(mesh, batch)
    return {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=places[name])
        for name, x in batch.items()
    }


def _local_tokens(config: Config, axes: Mapping[str, int]) -> tuple[int, int, int]:
    """b, l and d of one call of the operator on one chip of a mesh of these axes."""
    parts = axes["data"] * axes["fsdp"] * config.training.num_microbatches
    height, width, _ = grid_shape(config)
    tokens = height * width // config.model.patch_size**2
    b = config.training.batch_size // parts
    return b, tokens // axes["sequence"], config.model.width


def _operator(config: Config, mesh) -> Choice:
    """What `None` takes on that chip; the default of this machine's backend would be another."""
    name = config.model.ssm_implementation
    b, l, d = _local_tokens(config, mesh.shape)
    r = 2 if config.model.direction == "both" else 1
    u = jax.ShapeDtypeStruct((b, l, d), config.model.dtype)
    poles = jax.ShapeDtypeStruct((r, d, config.model.state_size // 2, 2), jnp.float32)
    tiling = tiling_for(mesh.devices.flat[0].device_kind)
    usable = l >= tiling.chunk_size and refusal(tiling, u, poles) is None
    if name == "pallas_tpu" or (name is None and usable):
        return Choice("pallas_tpu", tiling=tiling)
    return Choice(name or "chunked", num_blocks=num_blocks_for("tpu", u.shape))


def _bytes_on_a_chip(tree: Any) -> int:
    return sum(
        x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))
        for x in jax.tree.leaves(tree)
    )


def _add_estimates(found: Plan, compiled: Any, config: Config, chip: Chip) -> None:
    """Memory, time and traffic of a program that fits."""
    memory, text = compiled.memory_analysis(), compiled.as_text()
    total = (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    found.temporary_gib = memory.temp_size_in_bytes / GIB
    found.total_gib, found.fits = total / GIB, total < chip.hbm_bytes
    counted = tpu_compiler.cycles(text)
    cycles = counted.xla
    if counted.kernels:
        b, l, d = _local_tokens(config, found.mesh)
        each = kernel_cycles(
            found.topology,
            b,
            l,
            d,
            num_pairs=config.model.state_size // 2,
            dtype=config.model.dtype,
        )
        cycles += sum(
            times * each[name]
            for called, times in counted.kernels.items()
            for name in each
            if name in called
        )
    seconds = cycles / chip.clock_hz
    flops = FLOPS_PER_MULTIPLY_ADD * found.multiply_adds * found.batch_size
    found.million_cycles = cycles / 1e6
    found.step_ms = 1e3 * seconds
    found.images_per_second = found.batch_size / seconds
    found.mfu = flops / (seconds * chip.peak_flops * found.chips)
    found.collective_gb = {
        kind: size / 1e9 for kind, size in tpu_compiler.collectives(text).items()
    }
