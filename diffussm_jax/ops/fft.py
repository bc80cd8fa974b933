"""S4D as a convolution with the kernel K[l] = 2 Re(g . exp(p l)), by FFT.

This is the algorithm of the paper (and of S4D, eq. 6). It runs a single direction, whose SSM and
state have no axis r, and leaves the skip to `ops.s4d`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex64, Float

from diffussm_jax.ops.recurrence import DirectionState, Sequence
from diffussm_jax.shapes import SSM


def fft(
    u: Sequence, ssm: SSM, state: DirectionState, *, reverse: bool
) -> tuple[Sequence, DirectionState]:
    """Run one direction by FFT; holds exp(p l) for every l, n * l complex numbers a channel."""
    length = u.shape[1]
    powers = jnp.exp(_complex(ssm.poles)[..., None] * jnp.arange(length + 1))  # d n l+1
    gains = _complex(ssm.gains)
    x = _complex(state)
    kernel = 2 * _real_part("dn,dnl->dl", gains, powers[..., :-1])
    y = _convolve(u, kernel, reverse=reverse)
    from_state = 2 * _real_part("bdn,dnl->bld", x * gains, powers[..., 1:])
    # Token l is l + 1 steps from the state that enters a forward pass, length - l from that of a
    # backward one.
    y += jnp.flip(from_state, 1) if reverse else from_state
    to_end = powers[..., :-1] if reverse else jnp.flip(powers[..., :-1], -1)
    last = _product("dnl,bld->bdn", to_end.real, u), _product("dnl,bld->bdn", to_end.imag, u)
    x = powers[..., -1] * x
    return y, jnp.stack([x.real + last[0], x.imag + last[1]], axis=-1)


def _real_part(spec: str, a: Complex64[Array, "..."], b: Complex64[Array, "..."]) -> Array:
    """The real part of a product; none is complex, which JAX's policies of what to save refuse."""
    return _product(spec, a.real, b.real) - _product(spec, a.imag, b.imag)


def _product(spec: str, a: Array, b: Array) -> Array:
    """A product in full float32 precision on every backend."""
    return jnp.einsum(spec, a, b, precision=jax.lax.Precision.HIGHEST)


def _convolve(u: Sequence, kernel: Float[Array, "d l"], *, reverse: bool) -> Sequence:
    """Convolve causally over l; in reverse the conjugate spectrum mirrors the kernel."""
    size = 2 * u.shape[1]
    spectrum = jnp.fft.rfft(kernel, size).T  # size/2+1 d
    spectrum = spectrum.conj() if reverse else spectrum
    return jnp.fft.irfft(jnp.fft.rfft(u, size, axis=1) * spectrum, size, axis=1)[:, : u.shape[1]]


def _complex(x: Float[Array, "... 2"]) -> Complex64[Array, "..."]:
    return x[..., 0] + 1j * x[..., 1]
