"""Channels are independent: run them a block at a time, and keep only the inputs for the backward pass.

The working set of a block stays in a CPU's cache, and the memory that an operator needs besides its
inputs and outputs shrinks to that of one block.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffussm_jax.shapes import Gains, Poles, Skip, State, Tokens

Operands = tuple[Tokens, Poles, Gains, Skip, State | None]
# y with the directions apart, [b l r d], and the state or None
Results = tuple[jax.Array, State | None]

# The axis of the channels in each operand and each result.
_OPERANDS, _RESULTS = (2, 1, 1, 1, 2), (3, 2)


def by_channel_blocks(
    run: Callable[..., Results], operands: Operands, *, num_blocks: int
) -> Results:
    """run(*operands) in `num_blocks` blocks of channels, one after the other.

    The gradient runs each block again, of which XLA keeps only what the gradient needs.
    """
    if num_blocks == 1:
        return run(*operands)
    d = operands[0].shape[2]
    padded = _pad(operands, -d % num_blocks)
    results = _mapped(run, num_blocks, padded)
    return _cut(results, d)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _mapped(run, num_blocks: int, operands: Operands) -> Results:
    blocks = _split(operands, _OPERANDS, num_blocks)
    return _join(jax.lax.map(lambda block: run(*block), blocks), _RESULTS)


def _forward(run, num_blocks, operands):
    return _mapped(run, num_blocks, operands), operands


def _backward(run, num_blocks, operands, cotangents):
    def gradients(block):
        inputs, d_outputs = block
        return jax.vjp(run, *inputs)[1](d_outputs)

    blocks = (_split(operands, _OPERANDS, num_blocks), _split(cotangents, _RESULTS, num_blocks))
    return (_join(jax.lax.map(gradients, blocks), _OPERANDS),)


_mapped.defvjp(_forward, _backward)


def _split(arrays: Any, axes: tuple[int, ...], num_blocks: int) -> tuple:
    """The blocks of the channel axis in front."""

    def split(x, axis):
        shape = (*x.shape[:axis], num_blocks, -1, *x.shape[axis + 1 :])
        return jnp.moveaxis(x.reshape(shape), axis, 0)

    return _each(split, arrays, axes)


def _join(arrays: Any, axes: tuple[int, ...]) -> tuple:
    def join(x, axis):
        x = jnp.moveaxis(x, 0, axis)
        return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

    return _each(join, arrays, axes)


def _pad(operands: Operands, extra: int) -> tuple:
    """Channels of zeros behind the others, for blocks of equal size."""

    def pad(x, axis):
        return jnp.pad(x, [(0, extra if i == axis else 0) for i in range(x.ndim)])

    return _each(pad, operands, _OPERANDS) if extra else operands


def _cut(results: tuple, num_channels: int) -> Results:
    def cut(x, axis):
        return jax.lax.slice_in_dim(x, 0, num_channels, axis=axis)

    return _each(cut, results, _RESULTS)


def _each(f: Callable, arrays: Any, axes: tuple[int, ...]) -> tuple:
    return tuple(None if x is None else f(x, axis) for x, axis in zip(arrays, axes))
