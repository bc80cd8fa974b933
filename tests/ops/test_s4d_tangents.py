"""Tangents of every implementation, and gradients through them, against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffussm_jax.ops.pallas_tpu import Tiling
from diffussm_jax.ops.s4d import Implementation, s4d, s4d_with_state
from tests.ops.s4d_reference import error, make_input, make_ssm

PALLAS = Implementation("pallas_tpu", tiling=Tiling(channels=1, interpret=True))
BLOCKS = Implementation("chunked", num_blocks=3)
IMPLEMENTATIONS = {
    "scan": "scan",
    "associative_scan": "associative_scan",
    "fft": "fft",
    "chunked": Implementation("chunked", num_blocks=1),
    "chunked in blocks": BLOCKS,
    "chunked on gpu": Implementation("chunked", chunk_size=40, backend="gpu"),
    "pallas_tpu": PALLAS,
}
STOPS = {"stopped": jax.lax.stop_gradient, "whole": lambda tangents: tangents}
QUICK = {("chunked", "whole"), ("chunked in blocks", "stopped"), ("pallas_tpu", "stopped")}
CASES = [
    pytest.param(name, stop, marks=() if (name, stop) in QUICK else pytest.mark.slow)
    for name in IMPLEMENTATIONS
    for stop in STOPS
]
WITH_RULES = [
    pytest.param(BLOCKS, id="chunked in blocks"),
    pytest.param(PALLAS, id="pallas_tpu", marks=pytest.mark.slow),
]
# The recurrences multiply by one rounded decay many times (test_s4d.py).
TOLERANCE = {"scan": 1e-4, "associative_scan": 1e-4}
B, L, D, N = 2, 128, 4, 4
TARGET = make_input(B, L, 2 * D, seed=7)


@pytest.fixture(scope="module")
def operands():
    """u, the SSM and a state, and tangents of u and the state."""
    state, d_state = np.random.default_rng(3).normal(size=(2, 2, B, D, N, 2))
    u, ssm, d_u = make_input(B, L, D), make_ssm(2, D, N), make_input(B, L, D, seed=4)
    return u, ssm, jnp.asarray(state, jnp.float32), d_u, jnp.asarray(d_state, jnp.float32)


def loss(run, stop, u, ssm, state, d_u, d_state):
    """A loss of values and tangents, like MeanFlow's; `stop` is what that does to the tangents."""
    (y, last), tangents = jax.jvp(lambda u, state: run(u, ssm, state), (u, state), (d_u, d_state))
    d_y, d_last = stop(tangents)
    return jnp.mean((y + 0.5 * d_y - TARGET) ** 2) + jnp.mean((last - 0.5 * d_last) ** 2)


def by_matrices(u, ssm, state):
    """The operator in the precision of its arguments: the kernel K as a matrix K[l - s]."""
    lag = np.arange(L)[:, None] - np.arange(L)
    outputs, states = [], []
    for r, order in enumerate((slice(None), slice(None, None, -1))):
        p, g, x = (a[..., 0] + 1j * a[..., 1] for a in (ssm.poles[r], ssm.gains[r], state[r]))
        powers = jnp.exp(p[..., None] * np.arange(L + 1))  # d n l+1
        kernel = 2 * jnp.einsum("dn,dnl->dl", g, powers[..., :L]).real
        source = u[:, order]
        y = jnp.einsum("dls,bsd->bld", jnp.where(lag < 0, 0, kernel[:, lag]), source)
        y += 2 * jnp.einsum("dn,bdn,dnl->bld", g, x, powers[..., 1:]).real + ssm.skip[r] * source
        x = powers[..., L] * x + jnp.einsum("dnl,bld->bdn", powers[..., L - 1 :: -1], source)
        outputs.append(y[:, order])
        states.append(jnp.stack([x.real, x.imag], axis=-1))
    return jnp.concatenate(outputs, axis=-1), jnp.stack(states)


def value_and_gradients(run, stop, operands):
    arguments = tuple(range(len(operands)))
    return jax.jit(jax.value_and_grad(functools.partial(loss, run, stop), arguments))(*operands)


@pytest.mark.parametrize(("name", "stop"), CASES)
def test_gradients_of_values_and_tangents(name, stop, operands):
    def run(u, ssm, state):
        return s4d_with_state(u, ssm, initial_state=state, implementation=IMPLEMENTATIONS[name])

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), operands)
        expected = value_and_gradients(by_matrices, STOPS[stop], wide)
    actual = value_and_gradients(run, STOPS[stop], operands)
    for x, exact in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        exact = np.asarray(exact)
        assert np.all(exact == 0) or error(x, exact) < TOLERANCE.get(name, 1e-5)


@pytest.mark.parametrize("implementation", WITH_RULES)
def test_tangents_along_the_ssm(implementation, operands):
    """Also in forward mode, where nothing else has a tangent."""
    u, ssm, *_ = operands
    d_ssm = jax.tree.map(jnp.cos, ssm)

    @functools.partial(jax.jit, static_argnums=0)
    def tangent(implementation):
        run = functools.partial(s4d, u, implementation=implementation)
        return jax.jvp(run, (ssm,), (d_ssm,))[1]

    assert error(tangent(implementation), np.asarray(tangent("fft"))) < 1e-5


@pytest.mark.parametrize("implementation", WITH_RULES)
def test_gradients_of_u_alone(implementation, operands):
    """Where the SSM is constant, the operator itself is transposed."""
    u, ssm, state, *_ = operands

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(implementation):
        def total(u):
            run = functools.partial(s4d, ssm=ssm, initial_state=state)
            return jnp.sum((run(u, implementation=implementation) - TARGET) ** 2)

        return jax.grad(total)(u)

    assert error(gradient(implementation), np.asarray(gradient("fft"))) < 1e-5


def test_a_second_derivative_of_the_kernels_is_refused(operands):
    u, ssm, *_ = operands

    def gradient(ssm):
        return jax.grad(lambda ssm: jnp.sum(s4d(u, ssm, implementation=PALLAS) ** 2))(ssm)

    with pytest.raises(NotImplementedError, match="take implementation 'chunked'"):
        jax.eval_shape(lambda ssm: jax.jvp(gradient, (ssm,), (ssm,)), ssm)


@pytest.mark.parametrize("num_blocks", [1, 2])
def test_no_product_inside_the_operator_is_kept(num_blocks, operands):
    """A policy that keeps the results of matrix products keeps none that is the operator's."""
    u, ssm, *_ = operands
    implementation = Implementation("chunked", num_blocks=num_blocks)

    def kept(run):
        run = jax.checkpoint(run, policy=jax.checkpoint_policies.dots_saveable)
        _, vjp = jax.eval_shape(lambda u, ssm: jax.vjp(run, u, ssm), u, ssm)
        return sum(x.size for x in jax.tree.leaves(vjp))

    def by_s4d(u, ssm):
        return jnp.sin(s4d(jnp.sin(u), ssm, implementation=implementation))

    assert kept(by_s4d) < 1.5 * (u.size + sum(x.size for x in ssm))
