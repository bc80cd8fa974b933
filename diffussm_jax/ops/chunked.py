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
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from diffussm_jax.ops import pairs
from diffussm_jax.ops.carry import ChunkStates, carry
from diffussm_jax.ops.channel_blocks import Results, by_channel_blocks
from diffussm_jax.shapes import SSM, State, Tokens, ceil_div

# Forming the tables of a chunk costs as much as many tokens; few tokens want small tables.
SMALL_CHUNK_SIZE = 32
FEW_TOKENS = 8192
# Up to this length one chunk beats several: the states cost more products than the larger triangle
# saves.
LONGEST_SINGLE_CHUNK = 128


class Form(NamedTuple):
    """How a backend computes the operator fastest, as measured or counted (docs/benchmarks.md).

    Attributes:
        chunk_size: tokens of a chunk where there are many.
        block_elements: elements of u in a block of channels: on a CPU what stays in its cache,
            elsewhere what keeps the memory bounded.
        joint: inputs and states of a chunk lie side by side and meet one product, whose sums are
            rounded at once. It saves passes over y in float32, and costs copies.
        unroll: steps of the recurrence over chunks that the loop's body holds.
    """

    chunk_size: int = 64
    block_elements: int = 2**24
    joint: bool = False
    unroll: int = 1


FORMS = {
    "cpu": Form(block_elements=2**16),
    "tpu": Form(),
    # Bound by memory: larger chunks leave fewer states, which are float32, and larger tables.
    "gpu": Form(chunk_size=128, block_elements=2**27, joint=True, unroll=16),
}


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
    backend: str | None = None,
) -> tuple[Float[Array, "b l e"], State | None]:
    """Run all directions at once; u is read in its own dtype, sums and states are float32.

    A length that `chunk_size` does not divide leaves one shorter chunk at the end: padding would
    move the point at which a backward pass begins. The channels go in `num_blocks` blocks. Both
    are those of `backend`, or of the default one, unless they are given. Without `return_state` the
    second result is None, and a single chunk forms no states.
    """
    form = form_of(backend or jax.default_backend())
    size = chunk_size or _default_chunk_size(form, *u.shape[:2])
    run = functools.partial(
        _run, reverse=reverse, return_state=return_state, form=form._replace(chunk_size=size)
    )
    num_blocks = num_blocks or min(u.shape[2], ceil_div(u.size, form.block_elements))
    y, last = by_channel_blocks(run, (u, ssm, state), num_blocks=num_blocks)
    return y.reshape(*u.shape[:2], -1), last


def form_of(backend: str) -> Form:
    """The form for a backend of JAX, which names those of GPUs in several ways."""
    return FORMS.get(backend, FORMS["gpu"])


def _run(
    u: Tokens,
    ssm: SSM,
    state: State | None,
    *,
    reverse: tuple[bool, ...],
    return_state: bool,
    form: Form,
) -> Results:
    """A block of channels."""
    length = u.shape[1]
    size = min(length, form.chunk_size)
    poles = pairs.each(lambda part: part[..., None], pairs.unpack(ssm.poles))
    powers = pairs.power(poles, np.arange(size + 1))  # r d n t
    parts = [u[:, : length - length % size], u[:, length - length % size :]]
    parts = [_split(part, size) for part in parts if part.shape[1]]  # d b g t
    tables = [_tables(powers, ssm, part.shape[-1], u.dtype, reverse) for part in parts]

    entering: Sequence[ChunkStates | None] = [None]
    if return_state or state is not None or len(parts) > 1 or parts[0].shape[2] > 1:
        added = [_added_states(part, table) for part, table in zip(parts, tables)]
        decays = [table.decay for table in tables]
        entering, state = carry(added, decays, state, reverse, unroll=form.unroll)
    outputs = [_outputs(*of, joint=form.joint) for of in zip(parts, entering, tables)]
    y = jnp.concatenate([_merge(y) for y in outputs], axis=1)
    return y, state if return_state else None


def _default_chunk_size(form: Form, b: int, length: int) -> int:
    if length <= LONGEST_SINGLE_CHUNK:
        return length
    return SMALL_CHUNK_SIZE if b * length <= FEW_TOKENS else form.chunk_size


def _split(u: Tokens, size: int) -> Float[Array, "d b g t"]:
    """Channel-major chunks: the channel is the batch axis of every product."""
    u = u.reshape(u.shape[0], -1, min(size, u.shape[1]), u.shape[2])
    return jnp.transpose(u, (3, 0, 1, 2))


def _merge(y: Float[Array, "r d b g t"]) -> Float[Array, "b l r d"]:
    y = jnp.transpose(y, (2, 3, 4, 0, 1))
    return y.reshape(y.shape[0], -1, *y.shape[3:])


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 3))
def _product(spec: str, x: Array, table: Array, dtype: Any = jnp.float32) -> Float[Array, "..."]:
    """Matrix product with float32 sums; float32 operands keep their precision on every backend.

    It has a rule of its own, that of any product, so that `jax.checkpoint` does not take it for one
    of the dense products whose results its policies keep: these are larger than what they are of.
    """
    return jnp.einsum(
        spec, x, table, precision=jax.lax.Precision.HIGHEST, preferred_element_type=dtype
    )


@functools.partial(_product.defjvp, symbolic_zeros=True)
def _product_jvp(
    spec: str, dtype: Any, primals: tuple[Array, Array], tangents: tuple[Any, Any]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    x, table = primals
    of_x = () if _is_zero(tangents[0]) else (_product(spec, tangents[0], table, dtype),)
    of_table = () if _is_zero(tangents[1]) else (_product(spec, x, tangents[1], dtype),)
    return _product(spec, x, table, dtype), functools.reduce(operator.add, of_x + of_table)


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


def _outputs(
    u: Float[Array, "d b g s"], x: ChunkStates | None, tables: ChunkTables, *, joint: bool
) -> Float[Array, "r d b g t"]:
    """The outputs of each chunk, from its inputs and the state that enters it."""
    if x is not None and joint:
        states = jnp.stack([jnp.concatenate([u, of_r], axis=-1) for of_r in _as_input(x, u.dtype)])
        d, size, _ = tables.within.shape
        within = jnp.moveaxis(tables.within.reshape(d, size, len(states), -1), 2, 0)
        table = jnp.concatenate([within, tables.entering], axis=2)
        return _product("rdbgi,rdit->rdbgt", states, table, u.dtype)
    y = _product("dbgs,dso->dbgo", u, tables.within)
    y = y.reshape(*y.shape[:3], len(tables.entering), -1)
    if x is not None:
        y = y + _product("rdbgi,rdit->dbgrt", _as_input(x, u.dtype), tables.entering)
    return jnp.moveaxis(y.astype(u.dtype), 3, 0)


def _as_input(x: ChunkStates, dtype: jnp.dtype) -> Float[Array, "r d b g i"]:
    return jnp.concatenate(x, axis=-1).astype(dtype)
