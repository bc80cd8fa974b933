"""The TPU compiler on any Linux machine: compile for absent chips, and read its estimates.

The compiler is `libtpu` from the package index. Its estimates are deterministic, so they compare
two programs. Nothing here is timed on a chip, and the estimates leave out waiting for memory: bound
that by bytes / bandwidth.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from diffussm_jax.errors import UserError
from diffussm_jax.parallel.libtpu import let_libtpu_compile
from diffussm_jax.planning.gpus import GPUS
from diffussm_jax.planning.hlo import inner_computations, parse
from diffussm_jax.planning.kernel_calls import KernelCall, read_call

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TOO_LARGE = re.compile(r"([\d.]+)([MG])\) exceeds available HBM")


class TooLarge(Exception):
    """The compiler refused a program that needs more memory than a chip has, `needed_gib` GiB."""

    def __init__(self, needed_gib: float):
        super().__init__(f"the program needs {needed_gib:g} GiB a chip")
        self.needed_gib = needed_gib


@functools.cache
def devices(topology: str, *, num_slices: int = 1) -> tuple[jax.Device, ...]:
    """The chips of a topology such as "v5e:2x2" or "v5p:2x2x1".

    Raises:
        UserError: libtpu is not installed, or knows no such topology.
    """
    let_libtpu_compile()
    # By default libtpu shows a v4 chip's two cores as two devices; JAX on v4 has one.
    options: dict[str, Any] = {"chip_config_name": "megacore"} if topology.startswith("v4") else {}
    if re.search(r":1x1(x1)?$", topology):  # a host of one chip; by default a host has four
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, num_slices=num_slices, **options
        )
    except Exception as error:
        cards = ", ".join(GPUS)
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"config.plan.topology must be of TPUs, as v5e:2x2, or of GPUs, as h100:8 ({cards}), "
            f"got {topology!r} ({reason}; `pip install libtpu` has the compiler for TPUs)"
        ) from error
    return tuple(description.devices)


def compile_lowered(lowered: jax.stages.Lowered) -> Any:
    """Compile a lowered program.

    Raises:
        TooLarge: it needs more memory than a chip has.
    """
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if match := _TOO_LARGE.search(str(error)):
            raise TooLarge(float(match[1]) * (1.0 if match[2] == "G" else 1 / 1024)) from error
        raise


def compile_for(device: jax.Device, function: Callable, *arguments: Any) -> Any:
    """Compile `function` for one chip, from arguments with shapes and dtypes.

    Raises:
        TooLarge: it needs more memory than the chip has.
    """
    place = SingleDeviceSharding(device)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arguments
    )
    return compile_lowered(jax.jit(function).lower(*abstract))


@dataclasses.dataclass(frozen=True)
class Cycles:
    """The cost of a complete program.

    Attributes:
        xla: cycles of XLA's own operations.
        kernels: how often each call of a Pallas kernel runs; XLA does not know their cycles.
    """

    xla: int
    kernels: collections.Counter[KernelCall]

    @property
    def kernel_bytes(self) -> int:
        """What all runs of all kernels read and write, each array once."""
        return sum(times * call.num_bytes for call, times in self.kernels.items())


def cycles(text: str) -> Cycles:
    """Add up the estimates in `compiled.as_text()`, loops multiplied by their number of rounds."""
    computations, entry = parse(text)

    @functools.cache
    def count(name: str) -> Cycles:
        xla, kernels = 0, collections.Counter[KernelCall]()
        for line in computations[name]:
            if match := _CYCLES.search(line):
                xla += int(match[1])
            if call := read_call(line):
                kernels[call] += 1
            for inner, rounds in inner_computations(line, computations):
                one_round = count(inner)
                xla += rounds * one_round.xla
                for kernel, times in one_round.kernels.items():
                    kernels[kernel] += rounds * times
        return Cycles(xla, kernels)

    return count(entry)
