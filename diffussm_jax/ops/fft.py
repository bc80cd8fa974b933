"""S4D as a convolution with the kernel K[l] = 2 Re(g . exp(p l)), by FFT: the algorithm of the paper (and of S4D, eq. 6)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffussm_jax.ops.recurrence import DirectionState, Parameters, Sequence


def fft(
    u: Sequence, poles: Parameters, gains: Parameters, state: DirectionState, *, reverse: bool
) -> tuple[Sequence, DirectionState]:
    """Run one direction by FFT; holds exp(p l) for every l, n * l complex numbers a channel."""
    length = u.shape[1]
    powers = jnp.exp(_complex(poles)[..., None] * jnp.arange(length + 1))  # d n l+1
    gains, state = _complex(gains), _complex(state)
    kernel = 2 * jnp.einsum("dn,dnl->dl", gains, powers[..., :-1]).real
    y = _convolve(u, kernel, reverse=reverse)
    from_state = 2 * jnp.einsum("bdn,dn,dnl->bld", state, gains, powers[..., 1:]).real
    # Token l is l + 1 steps from the state that enters a forward pass, length - l from a backward one.
    y += jnp.flip(from_state, 1) if reverse else from_state
    to_end = powers[..., :-1] if reverse else jnp.flip(powers[..., :-1], -1)
    state = powers[..., -1] * state + jnp.einsum("dnl,bld->bdn", to_end, u)
    return y, jnp.stack([state.real, state.imag], axis=-1)


def _convolve(u: Sequence, kernel: Float[Array, "d l"], *, reverse: bool) -> Sequence:
    """Causal convolution over l, or anticausal correlation: the conjugate spectrum reverses the kernel."""
    size = 2 * u.shape[1]
    spectrum = jnp.fft.rfft(kernel, size).T  # size/2+1 d
    spectrum = spectrum.conj() if reverse else spectrum
    return jnp.fft.irfft(jnp.fft.rfft(u, size, axis=1) * spectrum, size, axis=1)[:, : u.shape[1]]


def _complex(x: Float[Array, "... 2"]):
    return x[..., 0] + 1j * x[..., 1]
