"""Inputs for the operator, and its definition and gradient in float64.

Every implementation must equal them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from diffussm_jax.ops.s4d import discretize, s4d
from diffussm_jax.shapes import SSM

# Relative errors of a kernel: of values, and of the SSM's gradients.
TOLERANCE = {jnp.float32: (1e-6, 1e-5), jnp.bfloat16: (5e-3, 2e-2)}


def make_ssm(r, d, n, seed=0):
    """An S4D-Lin layer with random C; B is random too, as in a model that has been trained."""
    rng = np.random.default_rng(seed)
    log_dt = rng.uniform(np.log(1e-3), np.log(1e-1), (r, d))
    frequencies = np.broadcast_to(np.pi * np.arange(n), (r, d, n))
    c = rng.normal(size=(r, d, n, 2)) / np.sqrt(2)
    skip = rng.normal(size=(r, d))
    b = np.stack([np.ones((r, d, n)), np.zeros((r, d, n))], -1) + 0.3 * rng.normal(size=c.shape)
    raw = (log_dt, np.full((r, d, n), np.log(0.5)), frequencies, b, c, skip)
    return discretize(*(jnp.asarray(x, jnp.float32) for x in raw))


def make_input(b, l, d, dtype=jnp.float32, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(b, l, d)), dtype)


def recurrence(u, ssm, reverse, state=None):
    """The definition, token by token in float64; returns y and the last state."""
    u, poles, gains, skip = (np.asarray(x, np.float64) for x in (u, *ssm))
    p, g = (x[..., 0] + 1j * x[..., 1] for x in (poles, gains))
    outputs, states = [], []
    for r, backward in enumerate(reverse):
        x = np.zeros((u.shape[0], *p.shape[1:]), complex) if state is None else state[r]
        y = np.zeros_like(u)
        for i in range(u.shape[1])[:: -1 if backward else 1]:
            x = np.exp(p[r]) * x + u[:, i, :, None]
            y[:, i] = 2 * (g[r] * x).sum(-1).real + skip[r] * u[:, i]
        outputs.append(y)
        states.append(x)
    return np.concatenate(outputs, -1), np.stack(states)


def recurrence_vjp(u, ssm, reverse, dy):
    """Gradients of <y, dy> by the adjoint recurrence in float64, derived by hand."""
    u, poles, gains, skip, dy = (np.asarray(x, np.float64) for x in (u, *ssm, dy))
    p, g = (x[..., 0] + 1j * x[..., 1] for x in (poles, gains))
    d = u.shape[2]
    du = np.zeros_like(u)
    d_poles, d_gains, d_skip = np.zeros_like(p), np.zeros_like(g), np.zeros_like(skip)
    for r, backward in enumerate(reverse):
        decay, out = np.exp(p[r]), dy[..., r * d : (r + 1) * d]
        order = list(range(u.shape[1]))[:: -1 if backward else 1]
        x, before = np.zeros((u.shape[0], *p.shape[1:]), complex), {}
        for i in order:
            before[i] = x
            x = decay * x + u[:, i, :, None]
            d_gains[r] += 2 * (out[:, i, :, None] * x.conj()).sum(0)
        adjoint = np.zeros_like(x)  # d<y, dy> / dx, real and imaginary parts as one number
        for i in order[::-1]:
            adjoint = decay.conj() * adjoint + 2 * out[:, i, :, None] * g[r].conj()
            du[:, i] += adjoint.sum(-1).real + skip[r] * out[:, i]
            d_poles[r] += (adjoint * (decay * before[i]).conj()).sum(0)
        d_skip[r] = (out * u).sum((0, 1))
    pack = functools.partial(np.stack, axis=-1)
    d_ssm = SSM(pack([d_poles.real, d_poles.imag]), pack([d_gains.real, d_gains.imag]), skip=d_skip)
    return du, d_ssm


def value_and_gradients_of(u, ssm, reverse, dy):
    """y, du and the SSM's gradients by the definition, in float64."""
    y, _ = recurrence(u, ssm, reverse)
    return y, *recurrence_vjp(u, ssm, reverse, dy)


def assert_close(actual, expected, dtype=jnp.float32):
    """Compare what `value_and_gradients_of` returns with a kernel's."""
    of_values, of_parameters = TOLERANCE[dtype]
    (*values, d_ssm), (*expected_values, expected_d_ssm) = actual, expected
    for value, other in zip(values, expected_values, strict=True):
        assert error(value, other) < of_values
    for gradient, other in zip(d_ssm, expected_d_ssm, strict=True):
        assert error(gradient, other) < of_parameters


def gelu_and_slope(x):
    """GELU's tanh form and its derivative, in float64."""
    x = np.asarray(x, np.float64)
    t = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    slope = (1 + t) / 2 + x * (1 - t**2) / 2 * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
    return x * (1 + t) / 2, slope


@functools.partial(jax.jit, static_argnums=0)
def value_and_vjp(implementation, u, ssm, dy):
    """y, and the gradients of u and of the SSM."""
    y, vjp = jax.vjp(functools.partial(s4d, implementation=implementation), u, ssm)
    return y, vjp(dy)


def error(actual, expected):
    """Relative L2 error."""
    actual = np.asarray(actual, np.float64)
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)
