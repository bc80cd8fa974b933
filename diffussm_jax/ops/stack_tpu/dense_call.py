"""One call of a dense kernel: blocks of its arrays, stacks written in place, and VMEM."""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from diffussm_jax.ops.stack_tpu.dense_tiling import DenseTiling
from diffussm_jax.ops.stack_tpu.rows import VECTOR_SIZE, over_rows


class Blocked(NamedTuple):
    """An array, or a tree of arrays, with the blocks of it that the grid's steps see."""

    value: Any
    spec: Any
    is_total: bool = False


IMAGES, BLOCKS = 1, 2  # the axes of the grid that one core goes over
NOTHING = Blocked(None, None)


@dataclasses.dataclass(frozen=True)
class Grid:
    """A grid over cores, over the images of a core, and over blocks of `columns` of an image."""

    num_cores: int
    num_images: int
    num_blocks: int
    columns: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """The steps of each axis."""
        return self.num_cores, self.num_images, self.num_blocks

    def stack(self, x: Any, *, ahead: int = 0) -> Blocked:
        """Of a stack [L b rows j] the layer that the call is for, or one that is `ahead`, mod L."""
        num_layers, _, rows, _ = x.shape
        block = (None, None, rows, self.columns)

        def index(core, i, n, layer):
            return jax.lax.rem(layer[0] + ahead, num_layers), self._image(core, i), 0, n

        return Blocked(x, pl.BlockSpec(block, index))

    def activation(self, x: Any) -> Blocked:
        """Columns of an array [b rows j]."""
        block = (None, x.shape[1], self.columns)
        return Blocked(
            x, pl.BlockSpec(block, lambda core, i, n, layer: (self._image(core, i), 0, n))
        )

    def image(self, x: Any) -> Blocked:
        """What an array [b ...] has for an image."""
        block, rest = (None, *x.shape[1:]), (0,) * (len(x.shape) - 1)
        return Blocked(
            x, pl.BlockSpec(block, lambda core, i, n, layer: (self._image(core, i), *rest))
        )

    def complete(self, tree: Any) -> Blocked:
        """Complete arrays, in one buffer, since no step changes the block."""

        def spec(x):
            origin = (0,) * len(x.shape)
            once = pl.Buffered(1)
            return pl.BlockSpec(x.shape, lambda core, i, n, layer: origin, pipeline_mode=once)

        return Blocked(tree, jax.tree.map(spec, tree))

    def complete_of_layer(self, tree: Any) -> Blocked:
        """The layer's part, complete, of arrays that have a leading axis of layers."""

        def spec(x):
            block, rest = (None, *x.shape[1:]), (0,) * (len(x.shape) - 1)
            once = pl.Buffered(1)
            return pl.BlockSpec(
                block, lambda core, i, n, layer: (layer[0], *rest), pipeline_mode=once
            )

        return Blocked(tree, jax.tree.map(spec, tree))

    def total(self, tree: Any) -> Blocked:
        """Complete results that are sums over the grid: float32 on the way, rounded at the end."""

        def of_each_core(x):
            return jax.ShapeDtypeStruct((self.num_cores, *x.shape), x.dtype)

        def spec(x):
            rest = (0,) * len(x.shape)
            block, once = (None, *x.shape), pl.Buffered(1)
            return pl.BlockSpec(block, lambda core, i, n, layer: (core, *rest), pipeline_mode=once)

        return Blocked(jax.tree.map(of_each_core, tree), jax.tree.map(spec, tree), is_total=True)

    def _image(self, core: Any, i: Any) -> Any:
        return core * self.num_images + i


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
    aliases, unread = _written_in_place(jax.tree.leaves(values), jax.tree.leaves(shapes))
    sums = tuple(jax.tree.map(_sum_memory, x.value) if x.is_total else None for x in results)

    def body(_layer, operands, _unread, results, sums, memory):
        summed = jax.tree.map(_held, results, sums)
        kernel(*operands, *summed, **memory, unroll=tiling.unroll)
        _round_at_last_step(results, sums)

    (arrays,) = pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=grid.shape,
            in_specs=(
                tuple(x.spec for x in operands),
                [pl.BlockSpec(memory_space=pl.ANY) for _ in unread],
            ),
            out_specs=(tuple(x.spec for x in results),),
            scratch_shapes=[
                sums,
                {name: pltpu.VMEM(x.shape, x.dtype) for name, x in memory.items()},
            ],
        ),
        out_shape=(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shapes),),
        input_output_aliases=aliases,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=tiling.vmem_bytes,
        ),
        interpret=tiling.interpret,
        name=f"dense_{kernel.__name__}",
    )(layer, values, unread)
    # XLA would merge the write of a gradient into a scan's stack with the call, and then forget the
    # call's limit of VMEM.
    if not aliases:
        arrays = jax.lax.optimization_barrier(arrays)
    return tuple(_sum_cores(x) if result.is_total else x for x, result in zip(arrays, results))


def _written_in_place(operands: list, results: list) -> tuple[dict[int, int], list]:
    """Which argument each stack among the results is, and the stacks that are not read."""
    aliases: dict[int, int] = {}
    unread: list[Any] = []
    for number, x in enumerate(results):
        if not isinstance(x, jax.ShapeDtypeStruct):
            same = [n for n, operand in enumerate(operands) if operand is x]
            aliases[1 + (same[0] if same else len(operands) + len(unread))] = number
            unread += [] if same else [x]
    return aliases, unread


def _sum_cores(tree: Any) -> Any:
    """Add up what each core has; XLA's reduction takes more than twice as long as an addition."""
    return jax.tree.map(lambda x: functools.reduce(operator.add, list(x)), tree)


def _sum_memory(x: Any) -> Any:
    """Memory for a sum over the grid, where its result does not serve."""
    return None if x.dtype == jnp.float32 else pltpu.VMEM(x.shape[1:], jnp.float32)


def _held(result: Any, total: Any) -> Any:
    return result if total is None else total


def _round_at_last_step(results: Any, sums: Any) -> None:
    """Round sums over the grid to their results, which leave VMEM after the last step."""
    is_last = [pl.program_id(axis) == pl.num_programs(axis) - 1 for axis in (IMAGES, BLOCKS)]

    def write(result, total):
        def body(rows):
            result[..., rows, :] = total[..., rows, :].astype(result.dtype)

        if total is not None:
            over_rows(total, body, most=VECTOR_SIZE, unroll=False)

    @pl.when(is_last[0] & is_last[1])
    def _():
        jax.tree.map(write, results, sums)
