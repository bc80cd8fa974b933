"""The S4D operator: discretisation and one entry point for every implementation.

This is the state space layer of DiffuSSM, as S4D defines it (Gu et al. 2022). Per channel, with n
conjugate pairs of poles p and gains g:
    y_l = 2 Re sum_n g_n sum_{s<=l} exp(p_n (l - s)) u_s + skip u_l
for the forward direction; the backward one is the same on the reversed sequence, with parameters of
its own (lag 0 counts in both).
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from diffussm_jax.ops import pairs
from diffussm_jax.ops.chunked import chunked
from diffussm_jax.ops.fft import fft
from diffussm_jax.ops.pallas_tpu import Tiling, pallas_tpu, refusal, tiling_for
from diffussm_jax.ops.recurrence import associative_scan, scan
from diffussm_jax.shapes import SSM, State, Tokens

Direction = Literal["both", "forward", "backward"]
ImplementationName = Literal["scan", "associative_scan", "fft", "chunked", "pallas_tpu"]

# For each direction, whether each of its passes reads the sequence from the end.
DIRECTIONS: dict[str, tuple[bool, ...]] = {
    "both": (False, True),
    "forward": (False,),
    "backward": (True,),
}
_ONE_DIRECTION: dict[str, Callable] = {
    "scan": scan,
    "associative_scan": associative_scan,
    "fft": fft,
}


@runtime_checkable
class Operator(Protocol):
    """What a model calls to evaluate its SSM layers: `s4d`, with options bound or on a mesh."""

    def __call__(self, u: Tokens, ssm: SSM, *, direction: Direction) -> Float[Array, "b l e"]: ...


@dataclasses.dataclass(frozen=True)
class Implementation:
    """An implementation with its sizes; None takes the default for backend and shape."""

    name: ImplementationName | None = None
    chunk_size: int | None = None  # of "chunked"
    num_blocks: int | None = None  # of "chunked"
    backend: str | None = None  # that it is for; by default JAX's own
    tiling: Tiling | None = None  # of "pallas_tpu"

    @property
    def of_states(self) -> "Implementation":
        """What computes the last state alone fastest: XLA drops what makes the outputs."""
        return Implementation("chunked", backend=self.backend)


def s4d(
    u: Tokens,
    ssm: SSM,
    *,
    direction: Direction = "both",
    initial_state: State | None = None,
    implementation: ImplementationName | Implementation | None = None,
) -> Float[Array, "b l e"]:
    """Apply a diagonal state space layer to every channel of a sequence.

    Args:
        u: bfloat16 or float32 input.
        ssm: the layer, from `discretize`.
        direction: "both" takes r = 2 and returns the forward outputs first.
        initial_state: the state before the first token read (zero if None).
        implementation: None takes the fastest for this backend and shape (`choose`), a name takes
            that one, an `Implementation` that one with its sizes.

    Returns:
        y in u's dtype.

    Raises:
        ValueError: an argument has the wrong shape or dtype, or a name is unknown.
    """
    _validate(u, ssm, direction, initial_state, implementation)
    run = _operator(u, ssm, implementation)
    y, _ = run(u, ssm, initial_state, reverse=DIRECTIONS[direction], return_state=False)
    return y


def s4d_with_state(
    u: Tokens,
    ssm: SSM,
    *,
    direction: Direction = "both",
    initial_state: State | None = None,
    implementation: ImplementationName | Implementation | None = None,
) -> tuple[Float[Array, "b l e"], State]:
    """Return y as `s4d` does, and the state after the last token read, in float32."""
    _validate(u, ssm, direction, initial_state, implementation)
    run = _operator(u, ssm, implementation)
    return run(u, ssm, initial_state, reverse=DIRECTIONS[direction], return_state=True)


def choose(backend: str, u: Any, ssm: SSM, tiling: Tiling | None = None) -> Implementation:
    """Choose the fastest implementation for these shapes, by measurement (docs/benchmarks.md).

    `u` and the arrays of `ssm` may be anything that has the shapes and dtypes of `s4d`'s. A
    sequence shorter than a chunk of the TPU kernel would be padded to one; "chunked" needs no
    padding.
    """
    if backend == "tpu" and u.shape[1] >= Tiling().chunk_size:
        tiling = tiling or tiling_for(jax.devices()[0].device_kind)
        if refusal(tiling, u, ssm) is None:
            return Implementation("pallas_tpu", tiling=tiling)
    return Implementation("chunked", backend=backend)


def discretize(
    log_dt: Float32[Array, "r d"],
    log_neg_a_re: Float32[Array, "r d n"],
    a_im: Float32[Array, "r d n"],
    b: Float32[Array, "r d n 2"],
    c: Float32[Array, "r d n 2"],
    skip: Float32[Array, "r d"],
    *,
    dt_rate: float | Float32[Array, " e"] = 1.0,
) -> SSM:
    """Discretise A = -exp(log_neg_a_re) + i a_im, B and C by zero-order hold (S4D, table 1).

    B and C meet in a product, since the state is diagonal: the gains are B C (exp(dt A) - 1) / A.
    `skip`, the direct term D, stays as it is. `dt_rate` multiplies the steps dt: 0.5 makes a model
    trained on l tokens read 2 l tokens as the same signal. It may have one for each channel, also
    where these share the parameters (d = 1).
    """
    dt = (dt_rate * jnp.exp(log_dt))[..., None]
    a = -jnp.exp(log_neg_a_re), a_im
    poles = dt * a[0], dt * a[1]
    inverse_norm = 1 / (jnp.square(a[0]) + jnp.square(a[1]))
    inverse = a[0] * inverse_norm, -a[1] * inverse_norm
    hold = pairs.multiply(pairs.expm1(poles), inverse)
    gains = pairs.multiply(pairs.multiply(pairs.unpack(b), pairs.unpack(c)), hold)
    return SSM(pairs.pack(poles), pairs.pack(gains), skip)


def abstract_ssm(num_directions: int, num_channels: int, num_pairs: int) -> SSM:
    """The shapes and dtypes of an SSM, to compile for."""

    def zeros() -> SSM:
        poles = jnp.zeros((num_directions, num_channels, num_pairs, 2), jnp.float32)
        return SSM(poles, poles, jnp.zeros((num_directions, num_channels), jnp.float32))

    return jax.eval_shape(zeros)


def as_implementation(implementation: ImplementationName | Implementation | None) -> Implementation:
    """The implementation that a name or None stands for."""
    if isinstance(implementation, Implementation):
        return implementation
    return Implementation(implementation)


def _operator(
    u: Array, ssm: SSM, implementation: ImplementationName | Implementation | None
) -> Callable[..., Any]:
    """The implementation as run(u, ssm, state, reverse=..., return_state=...) -> (y, state)."""
    implementation = as_implementation(implementation)
    if implementation.name is None:
        backend = implementation.backend or jax.default_backend()
        implementation = choose(backend, u, ssm, implementation.tiling)
    match implementation.name:
        case "chunked":
            return functools.partial(
                chunked,
                chunk_size=implementation.chunk_size,
                num_blocks=implementation.num_blocks,
                backend=implementation.backend,
            )
        case "pallas_tpu":
            tiling = implementation.tiling or tiling_for(jax.devices()[0].device_kind)
            return functools.partial(pallas_tpu, tiling=tiling)
        case name:
            assert name is not None
            return functools.partial(_each_direction, _ONE_DIRECTION[name])


def _each_direction(
    run: Callable[..., tuple[Array, Array]],
    u: Tokens,
    ssm: SSM,
    state: State | None,
    *,
    reverse: tuple[bool, ...],
    return_state: bool,
) -> tuple[Float[Array, "b l e"], State | None]:
    """Run a one-direction form once per direction, in float32."""
    r, d, n, _ = ssm.poles.shape
    if state is None:
        state = jnp.zeros((r, u.shape[0], d, n, 2), jnp.float32)
    u32 = u.astype(jnp.float32)
    passes = [
        run(u32, *jax.tree.map(operator.itemgetter(i), (ssm, state)), reverse=backward)
        for i, backward in enumerate(reverse)
    ]
    y = jnp.concatenate([y + u32 * skip for (y, _), skip in zip(passes, ssm.skip)], axis=-1)
    return y.astype(u.dtype), jnp.stack([last for _, last in passes]) if return_state else None


def _validate(
    u: Array,
    ssm: SSM,
    direction: str,
    initial_state: Array | None,
    implementation: str | Implementation | None,
) -> None:
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {get_args(Direction)}, got {direction!r}")
    name = implementation.name if isinstance(implementation, Implementation) else implementation
    known = get_args(ImplementationName)
    if name is not None and name not in known:
        raise ValueError(f"implementation must be None or one of {known}, got {name!r}")
    if u.ndim != 3 or 0 in u.shape:
        raise ValueError(f"u must have shape [b, l, d] with no empty axis, got {u.shape}")
    if u.dtype not in (jnp.bfloat16, jnp.float32):
        raise ValueError(f"u must be bfloat16 or float32, got {u.dtype}")
    if ssm.poles.ndim != 4:
        raise ValueError(f"poles must have shape [r, d, n, 2], got {ssm.poles.shape}")
    b, _, d = u.shape
    r = len(DIRECTIONS[direction])
    n = ssm.poles.shape[2]
    _check("poles", ssm.poles, (r, d, n, 2))
    _check("gains", ssm.gains, (r, d, n, 2))
    _check("skip", ssm.skip, (r, d))
    if initial_state is not None:
        _check("initial_state", initial_state, (r, b, d, n, 2))


def _check(name: str, array: Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape or array.dtype != jnp.float32:
        raise ValueError(f"{name} must be float32 {shape}, got {array.dtype} {array.shape}")
