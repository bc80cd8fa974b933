"""The recurrence from chunk to chunk: X <- exp(p T) X + what the chunk alone would leave behind."""

import functools
import operator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from diffussm_jax.ops import pairs
from diffussm_jax.shapes import State

ChunkStates = tuple[Float[Array, "r d b _ n"], Float[Array, "r d b _ n"]]  # a pair, for g chunks


def carry(
    added: list[ChunkStates],
    decays: list[pairs.Pair],
    state: State | None,
    reverse: tuple[bool, ...],
    *,
    unroll: int,
) -> tuple[list[ChunkStates], State]:
    """Chain the chunks; returns the state that enters each and the one that leaves the last."""
    directions = []
    for r, backward in enumerate(reverse):
        of_r = jax.tree.map(operator.itemgetter(r), (added, decays, state))
        directions.append(_carry_direction(*of_r, backward=backward, unroll=unroll))
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
    unroll: int,
) -> tuple[list[pairs.Pair], pairs.Pair]:
    """X <- exp(p T) X + added, over the chunks of one direction in its order of reading."""
    if state is None:
        x = pairs.each(lambda part: jnp.zeros_like(part[:, :, 0]), added[0])
    else:
        x = pairs.unpack(jnp.swapaxes(state, 0, 1))  # d b n
    entering = list(added)
    for i in reversed(range(len(added))) if backward else range(len(added)):
        entering[i], x = _chain(added[i], decays[i], x, backward, unroll)
    return entering, x


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _chain(
    added: pairs.Pair, decay: pairs.Pair, x: pairs.Pair, backward: bool, unroll: int
) -> tuple[pairs.Pair, pairs.Pair]:
    """The states before each of several equal chunks [d b g n], and the one after the last."""
    decay = pairs.each(lambda part: part[:, None], decay)

    def step(x: pairs.Pair, chunk: pairs.Pair) -> tuple[pairs.Pair, pairs.Pair]:
        return pairs.add(pairs.multiply(decay, x), chunk), x

    chunks = pairs.each(lambda part: jnp.moveaxis(part, 2, 0), added)
    x, entering = jax.lax.scan(step, x, chunks, reverse=backward, unroll=unroll)
    return pairs.each(lambda part: jnp.moveaxis(part, 0, 2), entering), x


@_chain.defjvp
def _chain_jvp(backward: bool, unroll: int, primals: tuple, tangents: tuple) -> tuple:
    """A tangent obeys the same recurrence: dX <- exp(p T) dX + (d(exp(p T)) X + d added).

    Its transpose keeps no states but those that the chunks read anyway.
    """
    added, decay, x = primals
    d_added, d_decay, d_x = tangents
    entering, last = _chain(added, decay, x, backward, unroll)
    d_decay = pairs.each(lambda part: part[:, None, None], d_decay)
    d_added = pairs.add(d_added, pairs.multiply(d_decay, entering))
    return (entering, last), _chain(d_added, decay, d_x, backward, unroll)
