"""The states of an SSM between parts of a sequence, for kernels on channel-major stacks.

A state is `[d b 128]`: the pairs of all directions in packed lanes, as `pallas_tpu.parameters` puts
them.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32

from diffussm_jax.ops import pairs
from diffussm_jax.ops.pallas_tpu.block import HALF, LANES, num_levels
from diffussm_jax.ops.stack_tpu.ssm_tables import SSMTables

PackedState = Float32[Array, "d b 128"]


def entering_part(
    added: Float32[Array, "k d b 128"],
    part: Int32[Array, ""],
    decay: pairs.Pair,
    reverse: tuple[bool, ...],
) -> PackedState:
    """The state that enters one of k parts: x <- decay x + added over the parts read before it."""
    num_parts = len(added)
    backward = np.repeat(reverse, HALF // len(reverse))
    num_before = jnp.where(backward, num_parts - 1 - part, part)
    x = pairs.each(jnp.zeros_like, _unpack(added[0]))
    for n in range(num_parts - 1):
        ahead, behind = _unpack(added[n]), _unpack(added[num_parts - 1 - n])
        read = [jnp.where(backward, *both) for both in zip(behind, ahead)]
        after = pairs.add(pairs.multiply(decay, x), (read[0], read[1]))
        x = jnp.where(n < num_before, after[0], x[0]), jnp.where(n < num_before, after[1], x[1])
    return _pack(x)


def decay_over(tables: SSMTables, num_chunks: int) -> pairs.Pair:
    """exp(128 p) to the power of `num_chunks`, by squaring; it broadcasts to a state's halves."""
    chunk = _row(tables, num_levels(LANES) - 1)
    if num_chunks == 1:
        return chunk
    half = decay_over(tables, num_chunks // 2)
    whole = pairs.multiply(half, half)
    return pairs.multiply(whole, chunk) if num_chunks % 2 else whole


def gradient_of_entering(tables: SSMTables, left: PackedState) -> PackedState:
    """The gradient of the state that enters, from the one that dy leaves if read toward the entry.

    Token t of y reads 2 Re(g exp(p (t + 1)) x) of the state x that enters, whose gradient is
    sum_t dy_t conj(2 g exp(p (t + 1))).
    """
    weights = pairs.multiply(_row(tables, num_levels(LANES)), _row(tables, 0))  # 2 g and exp(p)
    return _pack(conjugate(pairs.multiply(weights, _unpack(left))))


def conjugate(x: pairs.Pair) -> pairs.Pair:
    """The complex conjugate."""
    return x[0], -x[1]


def _row(tables: SSMTables, row: int) -> pairs.Pair:
    return _unpack(tables.powers[:, row : row + 1])


def _unpack(lanes: Float32[Array, "*n 128"]) -> pairs.Pair:
    return lanes[..., :HALF], lanes[..., HALF:]


def _pack(x: pairs.Pair) -> Float32[Array, "*n 128"]:
    return jnp.concatenate(x, axis=-1)
