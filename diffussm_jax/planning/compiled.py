"""What a compiler says of a program, kept under the program's hash: none compiles twice.

The user's cache folder has it, beside the costs of kernels. A plan that was killed goes on where it
was, and one of a program that was planned before takes the time of tracing it.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import logging
import os
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from diffussm_jax.config.parsing import read_as
from diffussm_jax.errors import UserError
from diffussm_jax.files import write_json
from diffussm_jax.planning import gpu_compiler, tpu_compiler
from diffussm_jax.planning.chips import GIB, Chip
from diffussm_jax.planning.gpu_bound import bound_of_a_step
from diffussm_jax.planning.gpus import Gpu
from diffussm_jax.planning.hlo import collectives
from diffussm_jax.planning.kernel_cycles import cache_folder, kernel_costs
from diffussm_jax.planning.plans import Bound, CycleBudget, KernelUse
from diffussm_jax.planning.tpu_compiler import TooLarge
from diffussm_jax.planning.traffic import hbm_bytes

logger = logging.getLogger(__name__)

# What decides how a program compiles, besides its text.
_FLAGS = ("LIBTPU_INIT_ARGS", "XLA_FLAGS")
_PACKAGES = (
    *("jax", "jaxlib", "libtpu"),
    *(f"jax-cuda{release}-{part}" for release in (12, 13) for part in ("pjrt", "plugin")),
)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The figures of a program for one chip.

    Attributes:
        needed_gib: what the compiler said that the program needs when it refused to compile it for
            lack of memory; all other figures are then 0 or missing.
        temporary_gib: activations, gradients and other temporary arrays.
        total_gib: everything at once.
        cycles: of a program for TPUs.
        collective_gb: what arrives at a TPU chip, by kind of collective.
        bound: of a program for GPUs.
        seconds: that the compiler took when it compiled the program.
    """

    seconds: float
    needed_gib: float | None = None
    temporary_gib: float = 0.0
    total_gib: float = 0.0
    cycles: CycleBudget | None = None
    collective_gb: dict[str, float] = dataclasses.field(default_factory=dict)
    bound: Bound | None = None


def compile_program(
    jitted: Any,
    arguments: tuple,
    topology: str,
    mesh: Mesh,
    chip: Chip | Gpu,
    batch_size: int,
    *,
    num_steps: int = 1,
) -> Compiled:
    """The figures of a program on a topology, as kept or else by compiling it.

    Args:
        jitted: makes `batch_size` images in `num_steps` equal steps, of abstract `arguments`.
    """
    is_gpu = isinstance(chip, Gpu)
    lowered = gpu_compiler.lower(jitted, *arguments) if is_gpu else jitted.lower(*arguments)
    path = cache_folder("programs") / f"{_key(lowered, topology, mesh, with_lines=is_gpu)}.json"
    try:
        return read_as(path, Compiled)
    except (FileNotFoundError, NotADirectoryError, UserError):  # a UserError: it is damaged
        pass
    figures = _compile(lowered, topology, chip, batch_size, num_steps)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, dataclasses.asdict(figures))
    except OSError as error:
        logger.warning("the figures of a program are not kept for the next plan: %s", error)
    return figures


def _key(lowered: jax.stages.Lowered, topology: str, mesh: Mesh, *, with_lines: bool) -> str:
    """A hash of the program, `with_lines` where the figures name the lines that it comes from."""
    devices = [(device.id, device.device_kind) for device in mesh.devices.flat]
    compiler = [_version(name) for name in _PACKAGES], [os.environ.get(flag) for flag in _FLAGS]
    program = lowered.as_text(debug_info=with_lines)
    text = json.dumps((_readers(), topology, devices, compiler, program))
    return hashlib.sha256(text.encode()).hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@functools.cache
def _readers() -> str:
    """A hash of this folder's code: other code may read other figures from the same program."""
    paths = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def _compile(
    lowered: jax.stages.Lowered, topology: str, chip: Chip | Gpu, batch_size: int, num_steps: int
) -> Compiled:
    start = time.monotonic()
    compiler = gpu_compiler if isinstance(chip, Gpu) else tpu_compiler
    try:
        compiled = compiler.compile_lowered(lowered)
    except TooLarge as error:
        return Compiled(time.monotonic() - start, needed_gib=error.needed_gib)
    text = compiled.as_text()
    figures = Compiled(
        seconds=time.monotonic() - start,
        temporary_gib=compiled.memory_analysis().temp_size_in_bytes / GIB,
        total_gib=total_bytes(compiled) / GIB,
    )
    if isinstance(chip, Gpu):
        least = bound_of_a_step(text, chip, batch_size=batch_size, num_steps=num_steps)
        return dataclasses.replace(figures, bound=least)
    return dataclasses.replace(
        figures,
        cycles=_count(text, topology, chip),
        collective_gb={kind: size / 1e9 for kind, size in collectives(text).items()},
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


def _count(text: str, topology: str, chip: Chip) -> CycleBudget:
    """The cycles of one run of a program: of XLA's operations, and of each kernel."""
    counted = tpu_compiler.cycles(text)
    costs = kernel_costs(topology, counted.kernels)
    calls, cycles = collections.Counter[str](), collections.Counter[str]()
    waited_bytes, moved_bytes = 0, hbm_bytes(text)
    for call, times in counted.kernels.items():
        calls[call.name] += times
        cycles[call.name] += times * costs[call].cycles
        moved_bytes += times * costs[call].hbm_bytes
        waited_bytes += times * costs[call].block_bytes * chip.num_cores  # each has its own blocks
    waiting = waited_bytes / chip.hbm_bandwidth * chip.clock_hz
    total = counted.xla + cycles.total() + waiting
    return CycleBudget(
        million_cycles=total / 1e6,
        xla_million_cycles=counted.xla / 1e6,
        waiting_million_cycles=waiting / 1e6,
        kernels=tuple(
            KernelUse(name, calls[name], one_kernel / 1e6, one_kernel / total)
            for name, one_kernel in cycles.most_common()
        ),
        hbm_gb=moved_bytes / 1e9,
    )
