"""The TPU compiler's estimates for the operator and the block of DiffuSSM-XL."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from benchmarks.ssm.arguments import NUM_PAIRS
from benchmarks.ssm.derivatives import gradient, gradient_with_tangent
from diffussm_jax.config import ModelConfig
from diffussm_jax.models.block import Block
from diffussm_jax.ops.pallas_tpu import parameters, tiling_for
from diffussm_jax.ops.pallas_tpu.block import LANES, SUBLANES
from diffussm_jax.ops.s4d import DIRECTIONS, Direction, Implementation, Operator, abstract_ssm, s4d
from diffussm_jax.planning import tpu_compiler
from diffussm_jax.planning.kernel_cycles import kernel_costs
from diffussm_jax.shapes import SSM, Tokens

WIDTH = 1152
SHAPES = ((32, 1024), (8, 1024), (8, 4096))  # b l; the first is that of the block


@dataclasses.dataclass
class Row:
    """The estimates for one program on one chip, in million cycles and in MB."""

    program: str
    b: int
    l: int
    xla: float
    kernels: float
    total: float
    kernel_mb: float  # what the kernels read and write
    temporary_mb: float


class Estimator:
    """The compiler for one chip."""

    def __init__(self, topology: str):
        self.topology = topology
        self.device = tpu_compiler.devices(topology)[0]
        self.tiling = tiling_for(self.device.device_kind)
        self.pallas_tpu = Implementation("pallas_tpu", tiling=self.tiling)

    def row(self, program: str, b: int, l: int, function: Callable, *arguments: Any) -> Row:
        """Compile a function of abstract arguments and read the compiler's estimates."""
        compiled = tpu_compiler.compile_for(self.device, function, *arguments)
        estimate = tpu_compiler.cycles(compiled.as_text())
        costs = kernel_costs(self.topology, estimate.kernels)
        kernels = sum(times * costs[call].cycles for call, times in estimate.kernels.items())
        temporary = compiled.memory_analysis().temp_size_in_bytes
        total = estimate.xla + kernels
        figures = estimate.xla, kernels, total, estimate.kernel_bytes, temporary
        return Row(program, b, l, *(figure / 1e6 for figure in figures))


def report(topology: str) -> list[Row]:
    """Print the table, each row as soon as it is known."""
    estimator = Estimator(topology)
    print(
        f"{topology} ({estimator.device.device_kind}): width {WIDTH}, N = {2 * NUM_PAIRS}, "
        "bfloat16; million cycles, MB\n"
    )
    fields = [field.name for field in dataclasses.fields(Row)]
    print("| " + " | ".join(fields) + " |\n" + "|---" * len(fields) + "|")
    rows = []
    for program in programs(estimator):
        rows.append(estimator.row(*program))
        cells = (f"{x:.3f}" if isinstance(x, float) else str(x) for x in vars(rows[-1]).values())
        print("| " + " | ".join(cells) + " |", flush=True)
    return rows


def programs(estimator: Estimator) -> Iterator[tuple]:
    """Name, b, l, function and abstract arguments of every row."""
    pallas_tpu = operator(estimator.pallas_tpu)
    for b, l in SHAPES:
        y, u, ssm = operands(b, l)
        yield "operator forward", b, l, pallas_tpu, u, ssm
        yield "operator forward + backward", b, l, gradient(pallas_tpu), y, u, ssm
        with_tangent = gradient_with_tangent(pallas_tpu, along=(0,))
        yield "operator forward + tangent + backward", b, l, with_tangent, y, (u,), u, ssm
    b, l = SHAPES[0]
    _, _, ssm = operands(b, l)
    yield "its tables and their gradients", b, l, tables(estimator.tiling.chunk_size), ssm
    for name, apply_s4d in (("dense layers of the block", _copy), ("whole block", pallas_tpu)):
        function, arguments = block(apply_s4d, b, l)
        yield f"{name}, forward + backward", b, l, gradients_only(gradient(function)), *arguments
    dy, params, x, c = arguments
    with_tangent = gradients_only(gradient_with_tangent(function, along=(1, 2)))
    name = "whole block, forward + tangent + backward"
    yield name, b, l, with_tangent, dy, (x, c), params, x, c


def operands(b: int, l: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct, SSM]:
    """The shapes and dtypes of y, u and the SSM."""
    y = jax.ShapeDtypeStruct((b, l, 2 * WIDTH), jnp.bfloat16)
    u = jax.ShapeDtypeStruct((b, l, WIDTH), jnp.bfloat16)
    return y, u, abstract_ssm(2, WIDTH, NUM_PAIRS)


def operator(implementation: Implementation) -> Operator:
    """The operator by one implementation."""
    return functools.partial(s4d, implementation=implementation)


def gradients_only(function: Callable) -> Callable:
    """Leave the values out, which the compiler then need not write."""
    return lambda *arguments: function(*arguments)[1]


def tables(chunk: int) -> Callable:
    """Make what XLA runs for the kernels besides moving u and y.

    A slice of the powers stands in for the sums that the backward kernel writes.
    """
    reverse = DIRECTIONS["both"]

    def both(ssm: SSM) -> tuple:
        powers = parameters.powers(ssm, chunk)
        kernel = parameters.convolution_kernel(ssm, reverse, chunk)
        inputs = jax.lax.optimization_barrier((powers, jnp.moveaxis(kernel, -1, 0)))
        sums = inputs[0][:, :SUBLANES, :LANES]
        return inputs, parameters.gradients(ssm, inputs[1], sums, reverse, chunk)

    return both


def block(apply_s4d: Operator, b: int, l: int) -> tuple[Callable, tuple[Any, ...]]:
    """A block of the model, and the abstract arguments of its gradient."""
    config = ModelConfig(width=WIDTH, state_size=2 * NUM_PAIRS)
    model = jax.eval_shape(lambda: Block(config, apply_s4d=apply_s4d, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(model, nnx.Param)
    x = jax.ShapeDtypeStruct((b, l // config.m, WIDTH), jnp.bfloat16)
    c = jax.ShapeDtypeStruct((b, WIDTH), jnp.bfloat16)
    return (lambda params, x, c: nnx.merge(graphdef, params)(x, c)), (x, params, x, c)


def _copy(u: Tokens, ssm: SSM, *, direction: Direction) -> Array:
    """Stand in for the operator, to see what the dense layers alone cost."""
    return jnp.concatenate([u, u], axis=-1)
