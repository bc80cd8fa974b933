"""What the TPU compiler estimates for the operator and the block of DiffuSSM-XL."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.ssm.arguments import NUM_PAIRS
from diffussm_jax.config import ModelConfig
from diffussm_jax.models.block import Block
from diffussm_jax.ops.pallas_tpu import parameters, tiling_for
from diffussm_jax.ops.pallas_tpu.block import LANES, SUBLANES
from diffussm_jax.ops.s4d import DIRECTIONS, Choice, Operator, s4d
from diffussm_jax.planning import tpu_compiler
from diffussm_jax.planning.kernel_cycles import kernel_cycles

WIDTH = 1152
SHAPES = ((32, 1024), (8, 1024), (8, 4096))  # b l; the first is that of the block


@dataclasses.dataclass
class Row:
    """One program on one chip, in million cycles and in MB."""

    program: str
    b: int
    l: int
    xla: float
    kernels: float
    total: float
    kernel_mb: float  # what the kernels read and write
    temporary_mb: float


class Estimator:
    """Compiles programs for one chip; knows its kernels' cycles by shape."""

    def __init__(self, topology: str):
        self.topology = topology
        self.device = tpu_compiler.devices(topology)[0]
        tiling = tiling_for(self.device.device_kind)
        self.pallas_tpu = Choice("pallas_tpu", tiling=tiling)
        self._kernels: dict[tuple[int, int], dict[str, int]] = {}

    def kernels(self, b: int, l: int) -> dict[str, int]:
        if (b, l) not in self._kernels:
            self._kernels[b, l] = kernel_cycles(self.topology, b, l, WIDTH, num_pairs=NUM_PAIRS)
        return self._kernels[b, l]

    def row(self, program: str, b: int, l: int, function: Callable, *arguments) -> Row:
        compiled = tpu_compiler.compile_for(self.device, function, *arguments)
        found = tpu_compiler.cycles(compiled.as_text())
        kernels = sum(
            times * cycles
            for called, times in found.kernels.items()
            for name, cycles in self.kernels(b, l).items()
            if name in called  # autodiff puts its own words around it
        )
        temporary = compiled.memory_analysis().temp_size_in_bytes
        figures = found.xla, kernels, found.xla + kernels, found.kernel_bytes, temporary
        return Row(program, b, l, *(figure / 1e6 for figure in figures))


def report(topology: str) -> list[Row]:
    """Print the table, each row when it is known."""
    estimator = Estimator(topology)
    print(
        f"{topology} ({estimator.device.device_kind}): width {WIDTH}, N = {2 * NUM_PAIRS}, bfloat16; "
        "million cycles, MB\n"
    )
    fields = [field.name for field in dataclasses.fields(Row)]
    print("| " + " | ".join(fields) + " |\n" + "|---" * len(fields) + "|")
    rows = []
    for program in programs(estimator):
        rows.append(estimator.row(*program))
        cells = (f"{x:.3f}" if isinstance(x, float) else str(x) for x in vars(rows[-1]).values())
        print("| " + " | ".join(cells) + " |", flush=True)
    return rows


def programs(estimator: Estimator):
    """Name, b, l, function and abstract arguments of every row."""
    pallas_tpu, chunk = estimator.pallas_tpu, estimator.pallas_tpu.tiling.chunk_size
    for b, l in SHAPES:
        y, *arguments = operands(b, l)
        yield "operator forward", b, l, operator(pallas_tpu), *arguments
        both = gradient(operator(pallas_tpu))
        yield "operator forward + backward", b, l, both, y, *arguments
    b, l = SHAPES[0]
    _, _, *arguments = operands(b, l)
    yield "its tables and their gradients", b, l, tables(chunk), *arguments
    for name, apply in (
        ("dense layers of the block", _copy),
        ("whole block", lambda *x, direction: operator(pallas_tpu)(*x)),
    ):
        function, arguments = block(apply, b, l)
        yield f"{name}, forward + backward", b, l, function, *arguments


def operands(b: int, l: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    """y, then u, poles, gains and skip."""
    pole = jax.ShapeDtypeStruct((2, WIDTH, NUM_PAIRS, 2), jnp.float32)
    return (
        jax.ShapeDtypeStruct((b, l, 2 * WIDTH), jnp.bfloat16),
        jax.ShapeDtypeStruct((b, l, WIDTH), jnp.bfloat16),
        pole,
        pole,
        jax.ShapeDtypeStruct((2, WIDTH), jnp.float32),
    )


def operator(choice: Choice) -> Callable:
    return lambda *arguments: s4d(*arguments, implementation=choice)


def gradient(function: Callable) -> Callable:
    """Values and gradients, from the gradient of the values."""

    def both(dy, *arguments):
        y, vjp = jax.vjp(function, *arguments)
        return y, vjp(dy)

    return both


def tables(chunk: int) -> Callable:
    """What XLA does for the kernels besides moving u and y (a stand-in for what the kernel sums up)."""
    reverse = DIRECTIONS["both"]

    def both(poles, gains, skip):
        powers = parameters.powers(poles, gains, chunk)
        kernel = parameters.convolution_kernel(poles, gains, skip, reverse, chunk)
        found = jax.lax.optimization_barrier((powers, jnp.moveaxis(kernel, -1, 0)))
        sums = found[0][:, :SUBLANES, :LANES]
        return found, parameters.gradients(poles, gains, found[1], sums, reverse, chunk)

    return both


def block(apply: Operator, b: int, l: int) -> tuple[Callable, tuple[Any, ...]]:
    """A block of the model, forward and backward, and its abstract arguments."""
    config = ModelConfig(width=WIDTH, state_size=2 * NUM_PAIRS)
    model = jax.eval_shape(lambda: Block(config, apply_s4d=apply, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(model, nnx.Param)
    x = jax.ShapeDtypeStruct((b, l // config.m, WIDTH), jnp.bfloat16)
    c = jax.ShapeDtypeStruct((b, WIDTH), jnp.bfloat16)
    both = gradient(lambda params, x, c: nnx.merge(graphdef, params)(x, c))
    return (lambda *arguments: both(*arguments)[1]), (x, params, x, c)


def _copy(u, poles, gains, skip, *, direction):
    """In place of the operator, to see what the dense layers alone cost."""
    return jnp.concatenate([u, u], axis=-1)
