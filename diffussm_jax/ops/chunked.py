"""S4D in chunks: matrix products inside a chunk, one small recurrence from chunk to chunk.

With p = poles, g = gains and chunks of T tokens, a chunk of a forward pass is
    y_t  = sum_{s<=t} K[t-s] u_s + 2 Re sum_n g_n exp(p_n (t+1)) X_n
    K[t] = 2 Re sum_n g_n exp(p_n t)
    X_n <- exp(p_n T) X_n + sum_s exp(p_n (T-1-s)) u_s
and the backward pass is its mirror image. Only T powers of each pole are formed, never a kernel as
long as the sequence, and all directions share one product with u (State Space Duality, section 6,
per channel).
"""

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from diffussm_jax.ops import pairs
from diffussm_jax.ops.channel_blocks import Results, by_channel_blocks
from diffussm_jax.shapes import SSM, State, Tokens, ceil_div

# Forming the tables of a chunk costs as much as many tokens; few tokens want small tables.
CHUNK_SIZE = 64
SMALL_CHUNK_SIZE = 32
FEW_TOKENS = 8192
# Up to this length one chunk beats several: the states cost more products than the larger triangle
# saves.
LONGEST_SINGLE_CHUNK = 128

# Elements of u in a block of channels: on a CPU what stays in its cache, elsewhere what keeps the
# memory bounded.
BLOCK_ELEMENTS = {"cpu": 2**16, "other": 2**24}

ChunkStates = tuple[Float[Array, "r d b _ n"], Float[Array, "r d b _ n"]]  # a pair, for g chunks


class ChunkTables(NamedTuple):
    """The factors of a chunk's input and entering state; it reads tokens s and writes tokens t."""

    within: Float[Array, "d s o"]  # o = r t
    leaving: Float[Array, "d s i"]  # i = r 2 n
    entering: Float[Array, "r d k t"]  # k = 2 n
    decay: pairs.Pair  # r d n


def chunked(
    u: Tokens,
    ssm: SSM,
    state: State | None,
    *,
    reverse: tuple[bool, ...],
    return_state: bool,
    chunk_size: int | None = None,
    num_blocks: int | None = None,
) -> tuple[Float[Array, "b l e"], State | None]:
    """Run all directions at once; u is read in its own dtype, sums and states are float32.

    A length that `chunk_size` does not divide leaves one shorter chunk at the end: padding would
    move the point at which a backward pass begins. The channels go in `num_blocks` blocks. Without
    `return_state` the second result is None, and a single chunk forms no states.
    """
    run = functools.partial(_run, reverse=reverse, return_state=return_state, chunk_size=chunk_size)
    num_blocks = num_blocks or num_blocks_for(jax.default_backend(), u.shape)
    y, last = by_channel_blocks(run, (u, ssm, state), num_blocks=num_blocks)
    return y.reshape(*u.shape[:2], -1), last


def num_blocks_for(backend: str, shape: tuple[int, ...]) -> int:
    """The measured number of blocks for u of a shape [b l d]."""
    b, length, d = shape
    elements = BLOCK_ELEMENTS["cpu" if backend == "cpu" else "other"]
    return min(d, ceil_div(b * length * d, elements))


def _run(
    u: Tokens,
    ssm: SSM,
    state: State | None,
    *,
    reverse: tuple[bool, ...],
    return_state: bool,
    chunk_size: int | None,
) -> Results:
    """A block of channels."""
    b, length, _ = u.shape
    size = min(length, chunk_size or _default_chunk_size(b, length))
    poles = pairs.each(lambda part: part[..., None], pairs.unpack(ssm.poles))
    powers = pairs.power(poles, np.arange(size + 1))  # r d n t
    parts = [u[:, : length - length % size], u[:, length - length % size :]]
    parts = [_split(part, size) for part in parts if part.shape[1]]  # d b g t
    tables = [_tables(powers, ssm, part.shape[-1], u.dtype, reverse) for part in parts]

    outputs = [_product("dbgs,dso->dbgo", part, table.within) for part, table in zip(parts, tables)]
    if return_state or state is not None or len(parts) > 1 or parts[0].shape[2] > 1:
        added = [_added_states(part, table) for part, table in zip(parts, tables)]
        entering, state = _carry(added, [table.decay for table in tables], state, reverse)
        outputs = [
            y + _from_states(x, table, u.dtype) for y, x, table in zip(outputs, entering, tables)
        ]
    y = jnp.concatenate([_merge(y, len(reverse), u.dtype) for y in outputs], axis=1)
    return y, state if return_state else None


def _default_chunk_size(b: int, length: int) -> int:
    if length <= LONGEST_SINGLE_CHUNK:
        return length
    return SMALL_CHUNK_SIZE if b * length <= FEW_TOKENS else CHUNK_SIZE


def _split(u: Tokens, size: int) -> Float[Array, "d b g t"]:
    """Channel-major chunks: the channel is the batch axis of every product."""
    u = u.reshape(u.shape[0], -1, min(size, u.shape[1]), u.shape[2])
    return jnp.transpose(u, (3, 0, 1, 2))


def _merge(
    y: Float32[Array, "d b g o"], num_directions: int, dtype: jnp.dtype
) -> Float[Array, "b l r d"]:
    d, b, g, _ = y.shape
    y = y.astype(dtype).reshape(d, b, g, num_directions, -1)
    return jnp.transpose(y, (1, 2, 4, 3, 0)).reshape(b, -1, num_directions, d)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _product(spec: str, x: Array, table: Array) -> Float32[Array, "..."]:
    """Matrix product with float32 sums; float32 operands keep their precision on every backend.

    It has a rule of its own, that of any product, so that `jax.checkpoint` does not take it for one
    of the dense products whose results its policies keep: these are larger than what they are of.
    """
    return jnp.einsum(
        spec, x, table, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )


@functools.partial(_product.defjvp, symbolic_zeros=True)
def _product_jvp(
    spec: str, primals: tuple[Array, Array], tangents: tuple[Any, Any]
) -> tuple[Float32[Array, "..."], Float32[Array, "..."]]:
    x, table = primals
    of_x = () if _is_zero(tangents[0]) else (_product(spec, tangents[0], table),)
    of_table = () if _is_zero(tangents[1]) else (_product(spec, x, tangents[1]),)
    return _product(spec, x, table), functools.reduce(operator.add, of_x + of_table)


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, jax.custom_derivatives.SymbolicZero)


def _tables(
    powers: pairs.Pair, ssm: SSM, size: int, dtype: jnp.dtype, reverse: tuple[bool, ...]
) -> ChunkTables:
    """The tables of a chunk of `size` tokens, from exp(p t) for t = 0 .. at least `size`."""
    gains = pairs.each(lambda part: 2 * part[..., None], pairs.unpack(ssm.gains))
    weighted = pairs.multiply(gains, powers)
    kernel = weighted[0][..., :size].sum(axis=2).at[..., 0].add(ssm.skip)  # r d t
    within, leaving, entering = [], [], []
    for direction, backward in enumerate(reverse):
        triangle = _toeplitz(kernel[direction])  # d s t, s <= t
        within.append(jnp.swapaxes(triangle, 1, 2) if backward else triangle)
        # A backward pass leaves by the chunk's first token, a forward one by its last.
        to_exit = [part[direction, ..., :size] for part in powers]
        leaving += to_exit if backward else [part[..., ::-1] for part in to_exit]
        re, im = (part[direction, ..., 1 : size + 1] for part in weighted)
        reading = jnp.concatenate([re, -im], axis=1)  # d n*2 t
        entering.append(reading[..., ::-1] if backward else reading)
    return ChunkTables(
        within=jnp.concatenate(within, axis=-1).astype(dtype),
        leaving=jnp.swapaxes(jnp.concatenate(leaving, axis=1), 1, 2).astype(dtype),
        entering=jnp.stack(entering).astype(dtype),
        decay=pairs.each(lambda part: part[..., size], powers),
    )


def _toeplitz(kernel: Float32[Array, "d t"]) -> Float32[Array, "d t t"]:
    """Upper triangular M[s, t] = kernel[t - s].

    Reading the zero-padded row with a period one short of its length moves it by one place a row;
    unlike a gather, its gradient is again a sum of shifted rows.
    """
    d, size = kernel.shape
    row = jnp.concatenate([kernel, jnp.zeros_like(kernel)], axis=1)
    rows = jnp.tile(row, (1, size))[:, : size * (2 * size - 1)]
    return rows.reshape(d, size, 2 * size - 1)[:, :, :size]


def _added_states(u: Float[Array, "d b g s"], tables: ChunkTables) -> ChunkStates:
    """What each chunk adds to the state: the one that it alone would leave behind."""
    states = _product("dbgs,dsi->dbgi", u, tables.leaving)
    num_directions, _, num_pairs = tables.decay[0].shape
    states = states.reshape(*states.shape[:3], num_directions, 2, num_pairs)
    states = jnp.moveaxis(states, 3, 0)  # r d b g 2 n
    return states[..., 0, :], states[..., 1, :]


def _carry(
    added: list[ChunkStates],
    decays: list[pairs.Pair],
    state: State | None,
    reverse: tuple[bool, ...],
) -> tuple[list[ChunkStates], State]:
    """Chain the chunks; returns the state that enters each and the one that leaves the last."""
    directions = []
    for r, backward in enumerate(reverse):
        of_r = jax.tree.map(operator.itemgetter(r), (added, decays, state))
        directions.append(_carry_direction(*of_r, backward=backward))
    entering = [
        jax.tree.map(lambda *x: jnp.stack(x), *part) for part in zip(*(x for x, _ in directions))
    ]
    leaving = jnp.stack([pairs.pack(state) for _, state in directions])  # r d b n 2
    return entering, jnp.swapaxes(leaving, 1, 2)


def _carry_direction(
    added: list[pairs.Pair],
    decays: list[pairs.Pair],
    state: Float32[Array, "b d n 2"] | None,
    *,
    backward: bool,
) -> tuple[list[pairs.Pair], pairs.Pair]:
    """X <- exp(p T) X + added, over the chunks of one direction in its order of reading."""
    if state is None:
        x = pairs.each(lambda part: jnp.zeros_like(part[:, :, 0]), added[0])
    else:
        x = pairs.unpack(jnp.swapaxes(state, 0, 1))  # d b n
    entering = list(added)
    for i in reversed(range(len(added))) if backward else range(len(added)):
        decay = pairs.each(lambda part: part[:, None], decays[i])

        def step(
            x: pairs.Pair, chunk: pairs.Pair, decay: pairs.Pair = decay
        ) -> tuple[pairs.Pair, pairs.Pair]:
            return pairs.add(pairs.multiply(decay, x), chunk), x

        chunks = pairs.each(lambda part: jnp.moveaxis(part, 2, 0), added[i])
        x, before = jax.lax.scan(step, x, chunks, reverse=backward)
        entering[i] = pairs.each(lambda part: jnp.moveaxis(part, 0, 2), before)
    return entering, x


def _from_states(
    x: ChunkStates, tables: ChunkTables, dtype: jnp.dtype
) -> Float32[Array, "d b g o"]:
    """What the entering state adds to the outputs of its chunk."""
    states = jnp.concatenate(x, axis=-1).astype(dtype)  # r d b g n*2
    y = _product("rdbgi,rdit->dbgrt", states, tables.entering)
    return y.reshape(*y.shape[:3], -1)
