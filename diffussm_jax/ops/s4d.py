"""The S4D operator: discretisation and one entry point for every implementation.

The state space layer of DiffuSSM, as S4D defines it (Gu et al. 2022). Per channel, with n conjugate pairs of
poles p and gains g:
    y_l = 2 Re sum_n g_n sum_{s<=l} exp(p_n (l - s)) u_s + skip u_l
for the forward direction; the backward one is the same on the reversed sequence, with parameters of
its own (lag 0 counts in both).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from diffussm_jax.ops import pairs
from diffussm_jax.ops.chunked import chunked
from diffussm_jax.ops.fft import fft
from diffussm_jax.ops.pallas_tpu import Tiling, pallas_tpu, refusal, tiling_for
from diffussm_jax.ops.recurrence import associative_scan, scan
from diffussm_jax.shapes import Gains, Poles, Skip, State, Tokens

Direction = Literal["both", "forward", "backward"]
Implementation = Literal["scan", "associative_scan", "fft", "chunked", "pallas_tpu"]

# Anything with the signature of `s4d`: what models take in its place.
Operator = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Choice:
    """An implementation with its sizes; None takes the default for backend and shape."""

    implementation: Implementation
    chunk_size: int | None = None  # of "chunked"
    num_blocks: int | None = None  # of "chunked"
    tiling: Tiling | None = None  # of "pallas_tpu"


# For each direction of `Direction`, whether each of its passes reads the sequence from the end.
DIRECTIONS = {"both": (False, True), "forward": (False,), "backward": (True,)}
_ONE_DIRECTION = {"scan": scan, "associative_scan": associative_scan, "fft": fft}


def s4d(
    u: Tokens,
    poles: Poles,
    gains: Gains,
    skip: Skip,
    *,
    direction: Direction = "both",
    initial_state: State | None = None,
    return_state: bool = False,
    implementation: Implementation | Choice | None = None,
) -> Float[Array, "b l r*d"] | tuple[Float[Array, "b l r*d"], State]:
    """Apply a diagonal state space layer to every channel of a sequence.

    Args:
        u: bfloat16 or float32 input.
        poles: dt * A, real part negative. Always float32: bfloat16 poles are unusable.
        gains: C (exp(dt A) - 1) / A; the factor 2 Re(...) is the operator's.
        skip: the direct term D.
        direction: "both" takes r = 2 and returns the forward outputs first.
        initial_state: the state before the first token read (zero if None).
        return_state: also return the state after the last token read.
        implementation: None takes the fastest for this backend and shape (`choose`); a name takes that
            one, a `Choice` that one with its sizes.

    Returns:
        y in u's dtype, or (y, state) with a float32 state.

    Raises:
        ValueError: an argument has the wrong shape or dtype, or a name is unknown.
    """
    _validate(u, poles, gains, skip, direction, initial_state, implementation)
    reverse = DIRECTIONS[direction]
    if implementation is None:
        choice = choose(jax.default_backend(), u, poles)
    elif isinstance(implementation, Choice):
        choice = implementation
    else:
        choice = Choice(implementation)
    arguments = u, poles, gains, skip, initial_state
    if choice.implementation == "chunked":
        y, state = chunked(
            *arguments,
            reverse=reverse,
            return_state=return_state,
            chunk_size=choice.chunk_size,
            num_blocks=choice.num_blocks,
        )
    elif choice.implementation == "pallas_tpu":
        y, state = pallas_tpu(
            *arguments,
            reverse=reverse,
            return_state=return_state,
            tiling=choice.tiling or tiling_for(jax.devices()[0].device_kind),
        )
    else:
        run = _ONE_DIRECTION[choice.implementation]
        y, state = _each_direction(run, *arguments, reverse)
    return (y, state) if return_state else y  # type: ignore[return-value]  # state is there if asked for


def choose(backend: str, u, poles) -> Choice:
    """The fastest implementation that runs these shapes, by measurement (docs/benchmarks.md).

    `u` and `poles` may be anything that has the shapes and dtypes of `s4d`'s.
    A sequence shorter than a chunk of the TPU kernel would be padded to one; "chunked" needs no padding.
    """
    if backend == "tpu" and u.shape[1] >= Tiling().chunk_size:
        tiling = tiling_for(jax.devices()[0].device_kind)
        if refusal(tiling, u, poles) is None:
            return Choice("pallas_tpu", tiling=tiling)
    return Choice("chunked")


def discretize(
    log_dt: Float32[Array, "r d"],
    log_neg_a_re: Float32[Array, "r d n"],
    a_im: Float32[Array, "r d n"],
    c: Float32[Array, "r d n 2"],
    *,
    dt_rate: float = 1.0,
) -> tuple[Poles, Gains]:
    """Zero-order hold of A = -exp(log_neg_a_re) + i a_im with B = 1 (S4D, table 1).

    `dt_rate` multiplies dt: 0.5 makes a model trained on l tokens read 2 l tokens as the same signal.
    """
    dt = (dt_rate * jnp.exp(log_dt))[..., None]
    a = -jnp.exp(log_neg_a_re), a_im
    poles = dt * a[0], dt * a[1]
    inverse_norm = 1 / (jnp.square(a[0]) + jnp.square(a[1]))
    inverse = a[0] * inverse_norm, -a[1] * inverse_norm
    gains = pairs.multiply(pairs.unpack(c), pairs.multiply(pairs.expm1(poles), inverse))
    return pairs.pack(poles), pairs.pack(gains)


def _each_direction(run, u, poles, gains, skip, initial_state, reverse):
    """Run a one-direction form once per direction, in float32."""
    r, d, n, _ = poles.shape
    if initial_state is None:
        initial_state = jnp.zeros((r, u.shape[0], d, n, 2), jnp.float32)
    u32 = u.astype(jnp.float32)
    passes = [
        run(u32, *arguments, reverse=backward)
        for *arguments, backward in zip(poles, gains, initial_state, reverse)
    ]
    y = jnp.concatenate([y + u32 * direct for (y, _), direct in zip(passes, skip)], axis=-1)
    return y.astype(u.dtype), jnp.stack([state for _, state in passes])


def _validate(u, poles, gains, skip, direction, initial_state, implementation):
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {get_args(Direction)}, got {direction!r}")
    name = getattr(implementation, "implementation", implementation)
    known = get_args(Implementation)
    if name is not None and name not in known:
        raise ValueError(f"implementation must be None or one of {known}, got {name!r}")
    if u.ndim != 3 or 0 in u.shape:
        raise ValueError(f"u must have shape [b, l, d] with no empty axis, got {u.shape}")
    if u.dtype not in (jnp.bfloat16, jnp.float32):
        raise ValueError(f"u must be bfloat16 or float32, got {u.dtype}")
    if poles.ndim != 4:
        raise ValueError(f"poles must have shape [r, d, n, 2], got {poles.shape}")
    (b, _, d), r, n = u.shape, len(DIRECTIONS[direction]), poles.shape[2]
    _check("poles", poles, (r, d, n, 2))
    _check("gains", gains, (r, d, n, 2))
    _check("skip", skip, (r, d))
    if initial_state is not None:
        _check("initial_state", initial_state, (r, b, d, n, 2))


def _check(name: str, array: jax.Array, shape: tuple[int, ...]):
    if array.shape != shape or array.dtype != jnp.float32:
        raise ValueError(f"{name} must be float32 {shape}, got {array.dtype} {array.shape}")
