"""Run an operator on a block of channels at a time, since channels are independent.

The working set of a block stays in a CPU's cache, and the memory that an operator needs besides its
inputs and outputs shrinks to that of one block: for the backward pass only the inputs are kept.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffussm_jax.shapes import SSM, State, Tokens

Operands = tuple[Tokens, SSM, State | None]
Results = tuple[Float[Array, "b l r d"], State | None]
Run = Callable[..., Results]
Axes = tuple[int, ...]

# The axis of the channels in u, the SSM's arrays and the state; in y and the state.
_OPERAND_AXES = (2, 1, 2)
_RESULT_AXES = (3, 2)


def by_channel_blocks(run: Run, operands: Operands, *, num_blocks: int) -> Results:
    """run(*operands) in `num_blocks` blocks of channels, one after the other.

    The gradient runs each block again, and XLA keeps only the part that the gradient needs.
    """
    if num_blocks == 1:
        return run(*operands)
    d = operands[0].shape[2]
    blocks = _split(_pad(operands, -d % num_blocks), _OPERAND_AXES, num_blocks)
    # A loop needs no barriers against merging the recomputation away.
    run = jax.checkpoint(run, prevent_cse=False)
    results = _join(jax.lax.map(lambda block: run(*block), blocks), _RESULT_AXES)
    return _cut(results, d)


def _split(arrays: Any, axes: Axes, num_blocks: int) -> Any:
    """Split the axis of channels in two: the blocks, in front, and the channels of a block."""

    def split(x: Array, axis: int) -> Array:
        shape = (*x.shape[:axis], num_blocks, -1, *x.shape[axis + 1 :])
        return jnp.moveaxis(x.reshape(shape), axis, 0)

    return _map(split, arrays, axes)


def _join(arrays: Any, axes: Axes) -> Any:
    def join(x: Array, axis: int) -> Array:
        x = jnp.moveaxis(x, 0, axis)
        return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

    return _map(join, arrays, axes)


def _pad(operands: Any, extra: int) -> Any:
    """Add channels of zeros, for blocks of equal size."""

    def pad(x: Array, axis: int) -> Array:
        return jnp.pad(x, [(0, extra if i == axis else 0) for i in range(x.ndim)])

    return _map(pad, operands, _OPERAND_AXES) if extra else operands


def _cut(results: Any, num_channels: int) -> Any:
    def cut(x: Array, axis: int) -> Array:
        return jax.lax.slice_in_dim(x, 0, num_channels, axis=axis)

    return _map(cut, results, _RESULT_AXES)


def _map(f: Callable[[Array, int], Array], arrays: Any, axes: Axes) -> Any:
    """Apply f(array, axis) to each array; an axis holds for a subtree, as in `jax.vmap`."""
    return jax.tree.map(
        lambda axis, subtree: jax.tree.map(lambda x: f(x, axis), subtree), axes, arrays
    )
