"""The state that enters a part of a sequence, from what all parts add to it, as a kernel."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float32, Int32

from diffussm_jax.ops.pallas_tpu.block import (
    LANES,
    ChannelBlock,
    conjugate,
    expand,
    num_levels,
    swap,
)
from diffussm_jax.ops.pallas_tpu.tiling import Tiling
from diffussm_jax.ops.stack_tpu.ssm_tables import PackedState, SSMTables


def entering_part(
    added: Float32[Array, "k d b 128"],
    part: Int32[Array, ""],
    tables: SSMTables,
    *,
    block: ChannelBlock,
    tiling: Tiling,
    of_gradient: bool,
) -> PackedState:
    """The state that enters one of k parts of a sequence, or the gradient of the one that leaves.

    Token t of y reads 2 Re(g exp(p (t + 1)) x) of the state x that entered, whose gradient is
    sum_t dy_t conj(2 g exp(p (t + 1))): but for its factor, the state that dy adds if read toward
    the entry. So `of_gradient` takes such states, and the block's directions are reversed.
    """
    num_parts, d, b, _ = added.shape
    c = block.num_channels
    return pl.pallas_call(
        functools.partial(_kernel, block=block, of_gradient=of_gradient),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(d // c,),
            in_specs=(
                pl.BlockSpec((num_parts, c, b, LANES), lambda i, part: (0, i, 0, 0)),
                pl.BlockSpec((c, *tables.powers.shape[1:]), lambda i, part: (i, 0, 0)),
            ),
            out_specs=pl.BlockSpec((c, b, LANES), lambda i, part: (i, 0, 0)),
        ),
        out_shape=jax.ShapeDtypeStruct((d, b, LANES), jnp.float32),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), vmem_limit_bytes=tiling.vmem_bytes
        ),
        interpret=tiling.interpret,
        name="ssm_entering",
    )(part[None], added, tables.powers)


def _kernel(
    part_ref, added_ref, powers_ref, x_ref, *, block: ChannelBlock, of_gradient: bool
) -> None:
    """x <- exp(p l) x + added, over the parts of l tokens that are read before this one."""
    last_part, shape = added_ref.shape[0] - 1, x_ref.shape[1:]
    backward = block.backward_lanes(shape)
    num_before = jnp.where(backward, last_part - part_ref[0], part_ref[0])
    levels = num_levels(LANES)
    num_chunks = block.num_parts * block.num_chunks
    decays = _power(powers_ref[:, levels - 1], num_chunks)  # c 128
    readings = _times(powers_ref[:, levels], powers_ref[:, 0])  # 2 g exp(p)
    for c in block.channels:
        decay, reading = (rows[c : c + 1] for rows in (decays, readings))
        x = jnp.zeros(shape, jnp.float32)
        for n in range(last_part):
            read = jnp.where(backward, added_ref[last_part - n, c], added_ref[n, c])
            x = jnp.where(n < num_before, _times(decay, x) + read, x)
        x_ref[c] = conjugate(_times(reading, x)) if of_gradient else x


def _power(z, n: int):
    """z to the power of n, by squaring."""
    if n == 1:
        return z
    half = _power(z, n // 2)
    whole = _times(half, half)
    return _times(whole, z) if n % 2 else whole


def _times(a, b):
    """The product of complex numbers in packed lanes."""
    re, im = expand(a, swap(a))
    return re * b + im * swap(b)
