"""Blocks of rows of a matrix in VMEM, loops over them, and sums over rows and over lanes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from diffussm_jax.ops.pallas_tpu.block import LANES, SUBLANES

PACKED_ROWS = 16  # rows of a bfloat16 register
# Elements of a block: many, since each round of a loop waits for the results of the one before.
PRODUCT_SIZE = 384 * 512
VECTOR_SIZE = 64 * 512  # where no product runs beside; values of more only spill


def block_size(num_rows: int, most: int) -> int:
    """The largest divisor of `num_rows` up to `most` that is a multiple of 128, or else of 16.

    Raises:
        ValueError: there is none.
    """
    for unit in (LANES, PACKED_ROWS):
        for size in range(most - most % unit, 0, -unit):
            if num_rows % size == 0:
                return size
    raise ValueError(f"{num_rows} rows are no multiple of {PACKED_ROWS}")


def over_rows(
    x: Any, body: Callable[[pl.Slice], None], *, most: int = PRODUCT_SIZE, unroll: bool
) -> None:
    """Call body(rows) for one block of rows of x [.. rows columns] after the other.

    Args:
        most: elements of a block.
    """

    def without_carry(rows: pl.Slice, carry: None) -> None:
        body(rows)

    fold_rows(x, without_carry, None, most=most, unroll=unroll)


def fold_rows(
    x: Any,
    body: Callable[[pl.Slice, Any], Any],
    carry: Any,
    *,
    most: int = VECTOR_SIZE,
    unroll: bool,
) -> Any:
    """Fold carry = body(rows, carry) over the blocks of rows of x."""
    num_rows, num_columns = x.shape[-2:]
    size = block_size(num_rows, max(PACKED_ROWS, most // num_columns))

    def step(n, carry):
        return body(pl.Slice(pl.multiple_of(n * size, size), size), carry)

    if not unroll and num_rows > size:
        return jax.lax.fori_loop(0, num_rows // size, step, carry)
    for n in range(num_rows // size):
        carry = body(pl.Slice(n * size, size), carry)
    return carry


def parts(ref: Any, num: int) -> list:
    """Cut the rows of a Ref into `num` equal parts: those of each member k of a group."""
    size = ref.shape[0] // num
    return [ref.at[pl.ds(k * size, size)] for k in range(num)]


def fold(x):
    """Add up the registers of a column: [rows j] to [8 j], rows yet to be summed."""
    return sum(x[i : i + SUBLANES] for i in range(0, x.shape[0], SUBLANES))


def sum_rows(x):
    """Sum each column: [rows j] to [1 j]."""
    return jnp.sum(fold(x), axis=0, keepdims=True)


def fold_lanes(x):
    """Add up the registers of a row: [rows j] to float32 [rows 128], lanes yet to be summed."""
    return sum(x[:, i : i + LANES].astype(jnp.float32) for i in range(0, x.shape[1], LANES))


def sum_lanes(x):
    """Sum each row, and lay the sums along the lanes: [rows j] to [1 rows]."""
    return jnp.sum(fold_lanes(x).T, axis=0, keepdims=True)
