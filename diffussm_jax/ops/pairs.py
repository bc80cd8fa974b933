"""Complex numbers as (re, im) pairs of real arrays.

Only this form runs on every backend and in every kernel language.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Pair = tuple[Float[Array, "..."], Float[Array, "..."]]


def _split_two_pi() -> tuple[np.float32, ...]:
    """2 pi as a sum of float32 numbers whose first has 8 bits, so that turns * part is exact."""
    parts, rest = [np.float32(6.28125)], 2 * np.pi - 6.28125
    for _ in range(2):  # 12 bits each
        scale = 2.0 ** (11 - np.floor(np.log2(rest)))
        parts.append(np.float32(np.floor(rest * scale) / scale))
        rest -= float(parts[-1])
    return (*parts, np.float32(rest))


_TWO_PI_PARTS = _split_two_pi()


def each(f: Callable[[jax.Array], jax.Array], a: Pair) -> Pair:
    """Apply f to the real and to the imaginary part."""
    return f(a[0]), f(a[1])


def unpack(x: Float[Array, "... 2"]) -> Pair:
    """Split the trailing (re, im) axis."""
    return x[..., 0], x[..., 1]


def pack(x: Pair) -> Float[Array, "... 2"]:
    """Join a pair along a trailing (re, im) axis."""
    return jnp.stack(x, axis=-1)


def multiply(a: Pair, b: Pair) -> Pair:
    """Complex product a b; the two pairs broadcast."""
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


def add(a: Pair, b: Pair) -> Pair:
    """Complex sum a + b."""
    return a[0] + b[0], a[1] + b[1]


def exp(a: Pair) -> Pair:
    """Complex exponential."""
    magnitude = jnp.exp(a[0])
    return magnitude * jnp.cos(a[1]), magnitude * jnp.sin(a[1])


def expm1(a: Pair) -> Pair:
    """exp(a) - 1 without the cancellation near a = 0: cos y - 1 is taken as -2 sin^2(y / 2)."""
    x, y = a
    real = jnp.expm1(x) * jnp.cos(y) - 2 * jnp.square(jnp.sin(y / 2))
    return real, jnp.exp(x) * jnp.sin(y)


def power(poles: Pair, steps: np.ndarray) -> Pair:
    """exp(poles * steps), which broadcast, for whole steps below 4096.

    The phase is reduced modulo 2 pi before it is rounded: a plain float32 product loses up to
    1e-4 of a turn at the end of a chunk, which is the largest error of the chunked tables.
    """
    magnitude = jnp.exp(poles[0] * steps)
    phase = _phase(poles[1], jnp.asarray(steps, jnp.float32))
    return magnitude * jnp.cos(phase), magnitude * jnp.sin(phase)


def long_power(poles: Pair, steps: int) -> Pair:
    """exp(poles * steps) for any number of steps, by squaring."""
    if steps < 4096:
        return power(poles, np.array(steps))
    half = long_power(poles, steps // 2)
    whole = multiply(half, half)
    return multiply(whole, exp(poles)) if steps % 2 else whole


def long_expm1(poles: Pair, steps: int) -> Pair:
    """exp(poles * steps) - 1 for any number of steps, without the cancellation near 0."""
    if steps < 4096:
        count = jnp.asarray(steps, jnp.float32)
        return expm1((poles[0] * count, _phase(poles[1], count)))
    half = long_expm1(poles, steps // 2)
    whole = add(multiply(half, half), each(lambda x: 2 * x, half))
    if steps % 2 == 0:
        return whole
    one = expm1(poles)
    return add(add(whole, one), multiply(whole, one))


@jax.custom_jvp
def _phase(angle: jax.Array, steps: jax.Array) -> jax.Array:
    """angle * steps modulo 2 pi, by Cody and Waite's split of both factors."""
    high = _leading_bits(angle)
    turns = jnp.round(angle * steps * np.float32(1 / (2 * np.pi)))
    remainder = high * steps  # exact: 12 bits times 12 bits
    for part in _TWO_PI_PARTS:
        remainder = remainder - turns * part
    return remainder + (angle - high) * steps


@_phase.defjvp
def _phase_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    angle, steps = primals
    return _phase(angle, steps), tangents[0] * steps


def _leading_bits(x: jax.Array) -> jax.Array:
    """x rounded toward zero to the first 12 bits of its float32 significand."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jax.lax.bitcast_convert_type(bits & np.uint32(0xFFFFF000), jnp.float32)
