"""S4D as a linear recurrence: x_l = exp(p) x_{l-1} + u_l,  y_l = 2 Re(g . x_l).

`scan` follows the definition one token at a time and is the oracle of every other form;
`associative_scan` evaluates the same recurrence in log2(l) parallel steps and runs on any backend.
Both run a single direction, whose SSM and state have no axis r, and leave the skip to `ops.s4d`.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from diffussm_jax.ops import pairs
from diffussm_jax.shapes import SSM

Sequence = Float[Array, "b l d"]
DirectionState = Float32[Array, "b d n 2"]


def scan(
    u: Sequence, ssm: SSM, state: DirectionState, *, reverse: bool
) -> tuple[Sequence, DirectionState]:
    """Run one direction token by token; returns y and the state after the last token read."""
    decay = pairs.exp(pairs.unpack(ssm.poles))
    gains = pairs.unpack(ssm.gains)

    def step(x: pairs.Pair, u_l: Float[Array, "b d"]) -> tuple[pairs.Pair, Float[Array, "b d"]]:
        re, im = pairs.multiply(decay, x)
        x = re + u_l[..., None], im
        return x, _read_out(gains, x)

    x, y = jax.lax.scan(step, pairs.unpack(state), jnp.moveaxis(u, 1, 0), reverse=reverse)
    return jnp.moveaxis(y, 0, 1), pairs.pack(x)


def associative_scan(
    u: Sequence, ssm: SSM, state: DirectionState, *, reverse: bool
) -> tuple[Sequence, DirectionState]:
    """Run one direction as a parallel prefix; holds 2 n floats for every element of u.

    The scan of Hillis and Steele: step k adds the states 2^k tokens back. The decay is the same at
    every token, so its powers are squarings, and the program takes a quarter of the time that
    `jax.lax.associative_scan` takes to compile.
    """
    first, last = (-1, 0) if reverse else (0, -1)
    decay = pairs.exp(pairs.unpack(ssm.poles))
    entering = pairs.multiply(decay, pairs.unpack(state))
    inputs = jnp.broadcast_to(u[..., None], (*u.shape, ssm.poles.shape[1]))  # b l d n
    x = (inputs.at[:, first].add(entering[0]), jnp.zeros_like(inputs).at[:, first].set(entering[1]))
    distance = 1
    while distance < u.shape[1]:
        earlier = pairs.each(functools.partial(_shift, distance=distance, reverse=reverse), x)
        x = pairs.add(x, pairs.multiply(decay, earlier))
        decay = pairs.multiply(decay, decay)
        distance *= 2
    y = _read_out(pairs.unpack(ssm.gains), x)
    return y, pairs.pack(pairs.each(lambda part: part[:, last], x))


def _shift(x: Float[Array, "b l d n"], distance: int, *, reverse: bool) -> Float[Array, "b l d n"]:
    """x as it was `distance` tokens earlier in the order of reading, zero before the first."""
    kept = x[:, distance:] if reverse else x[:, :-distance]
    return jnp.pad(kept, ((0, 0), (0, distance) if reverse else (distance, 0), (0, 0), (0, 0)))


def _read_out(gains: pairs.Pair, x: pairs.Pair) -> Float[Array, "*b d"]:
    """2 Re(g . x), summed over the state pairs."""
    return 2 * jnp.sum(gains[0] * x[0] - gains[1] * x[1], axis=-1)
