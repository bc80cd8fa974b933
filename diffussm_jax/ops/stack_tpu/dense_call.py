"""One call of a dense kernel: blocks of its arrays, stacks written in place, and VMEM."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from diffussm_jax.ops.stack_tpu.dense_tiling import DenseTiling
from diffussm_jax.ops.stack_tpu.rows import VECTOR_ROWS, over_rows


class Blocked(NamedTuple):
    """An array, or a tree of arrays, with the blocks of it that the grid's steps see.

    `sums` has, for each array that is to be summed in more digits than it keeps, memory for that.
    """

    value: Any
    spec: Any
    sums: Any = None


NOTHING = Blocked(None, None)


@dataclasses.dataclass(frozen=True)
class Grid:
    """A grid over `num_images` images and, within each, `num_blocks` blocks of `columns`."""

    num_images: int
    num_blocks: int
    columns: int

    def stack(self, x: Any, *, ahead: int = 0) -> Blocked:
        """Of a stack [L b rows j] the layer that the call is for, or one that is `ahead`, mod L."""
        num_layers, _, rows, _ = x.shape
        block = (None, None, rows, self.columns)

        def index(i, n, layer):
            return jax.lax.rem(layer[0] + ahead, num_layers), i, 0, n

        return Blocked(x, pl.BlockSpec(block, index))

    def activation(self, x: Any) -> Blocked:
        """Columns of an array [b rows j]."""
        block = (None, x.shape[1], self.columns)
        return Blocked(x, pl.BlockSpec(block, lambda i, n, layer: (i, 0, n)))

    def image(self, x: Any) -> Blocked:
        """What an array [b ...] has for an image."""
        rest = (0,) * (len(x.shape) - 1)
        return Blocked(x, pl.BlockSpec((None, *x.shape[1:]), lambda i, n, layer: (i, *rest)))

    def complete(self, tree: Any) -> Blocked:
        """Complete arrays, in one buffer, since no step changes the block."""

        def spec(x):
            origin = (0,) * len(x.shape)
            once = pl.Buffered(1)
            return pl.BlockSpec(x.shape, lambda i, n, layer: origin, pipeline_mode=once)

        return Blocked(tree, jax.tree.map(spec, tree))

    def total(self, tree: Any) -> Blocked:
        """Complete results that are float32 sums over the grid, rounded after its last step."""

        def memory(x):
            return None if x.dtype == jnp.float32 else pltpu.VMEM(x.shape, jnp.float32)

        return self.complete(tree)._replace(sums=jax.tree.map(memory, tree))


def call(
    kernel: Callable,
    layer: Any,
    grid: Grid,
    operands: tuple[Blocked, ...],
    results: tuple[Blocked, ...],
    memory: dict[str, jax.ShapeDtypeStruct],
    *,
    tiling: DenseTiling,
) -> Any:
    """Run kernel(*operands, *results, **memory) for a layer.

    A result whose value is an array is a stack that the kernel writes in place; it may be an
    operand too, of another layer. The other results are new arrays, given as shapes.
    """
    values = tuple(x.value for x in operands)
    shapes = tuple(x.value for x in results)
    leaves = jax.tree.leaves(values)
    is_stack = [not isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(shapes)]
    aliases: dict[int, int] = {}
    unread: list[Any] = []
    for number, (x, in_place) in enumerate(zip(jax.tree.leaves(shapes), is_stack)):
        if in_place:
            same = [n for n, operand in enumerate(leaves) if operand is x]
            aliases[1 + (same[0] if same else len(leaves) + len(unread))] = number
            unread += [] if same else [x]

    def body(_layer, operands, _unread, results, sums, memory):
        summed = jax.tree.map(_held, results, sums)
        kernel(*operands, *summed, **memory, unroll=tiling.unroll)
        _round_at_last_step(results, sums)

    (arrays,) = pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(grid.num_images, grid.num_blocks),
            in_specs=(
                tuple(x.spec for x in operands),
                [pl.BlockSpec(memory_space=pl.ANY) for _ in unread],
            ),
            out_specs=(tuple(x.spec for x in results),),
            scratch_shapes=[
                tuple(x.sums for x in results),
                {name: pltpu.VMEM(x.shape, x.dtype) for name, x in memory.items()},
            ],
        ),
        out_shape=(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shapes),),
        input_output_aliases=aliases,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=tiling.vmem_bytes
        ),
        interpret=tiling.interpret,
        name=f"dense_{kernel.__name__}",
    )(layer, values, unread)
    # XLA would merge the write of a gradient into a scan's stack with the call, and then forget the
    # call's limit of VMEM.
    return arrays if any(is_stack) else jax.lax.optimization_barrier(arrays)


def _held(result: Any, total: Any) -> Any:
    return result if total is None else total


def _round_at_last_step(results: Any, sums: Any) -> None:
    """Round sums over the grid to their results, which leave VMEM after the last step."""
    is_last = [pl.program_id(axis) == pl.num_programs(axis) - 1 for axis in range(2)]

    def write(result, total):
        def body(rows):
            result[..., rows, :] = total[..., rows, :].astype(result.dtype)

        if total is not None:
            over_rows(total.shape[-2], body, most=VECTOR_ROWS, unroll=False)

    @pl.when(is_last[0] & is_last[1])
    def _():
        jax.tree.map(write, results, sums)
