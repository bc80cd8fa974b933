"""One suite for every implementation of s4d, against a float64 recurrence written from the definition."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffussm_jax.ops.chunked import chunked
from diffussm_jax.ops.pallas_tpu import Tiling
from diffussm_jax.ops.s4d import Choice, discretize
from diffussm_jax.ops.s4d import s4d as eager_s4d
from tests.ops.s4d_reference import (
    error,
    make_input,
    make_parameters,
    recurrence,
    recurrence_vjp,
    value_and_vjp,
)

s4d = jax.jit(eager_s4d, static_argnames=("direction", "implementation", "return_state"))

PALLAS = Choice("pallas_tpu", tiling=Tiling(channels=1, interpret=True))
IMPLEMENTATIONS = ["scan", "associative_scan", "fft", "chunked", PALLAS]
# Relative L2 errors of y and du, then of the parameter gradients.
TOLERANCE = {
    "scan": (2e-5, 1e-4),
    "associative_scan": (2e-5, 1e-4),
    "fft": (5e-6, 1e-5),
    "chunked": (1e-6, 1e-5),
    PALLAS: (1e-6, 1e-5),
}
BFLOAT16_TOLERANCE = (5e-3, 2e-2)
SHAPES = [(1, 1, 3, 2), (2, 5, 8, 1), (1, 64, 4, 32), (3, 200, 8, 8), (2, 333, 5, 16)]  # b l d n
# The TPU kernel pads all of these to whole chunks, so the short ones are the same program.
CASES = [
    pytest.param(implementation, shape, id=f"{name}-{shape}")
    for implementation in IMPLEMENTATIONS
    for name in [getattr(implementation, "implementation", implementation)]
    for shape in (SHAPES[2:] if implementation == PALLAS else SHAPES)
]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("implementation", "shape"), CASES)
def test_value_and_gradients(implementation, shape, dtype):
    b, l, d, n = shape
    tolerance, gradient_tolerance = (
        TOLERANCE[implementation] if dtype == jnp.float32 else BFLOAT16_TOLERANCE
    )
    parameters = make_parameters(2, d, n)
    u, dy = make_input(b, l, d, dtype), make_input(b, l, 2 * d, dtype, seed=2)
    y, (du, *gradients) = value_and_vjp(implementation, u, parameters, dy)
    assert y.dtype == dtype
    assert error(y, recurrence(u, *parameters, (False, True))[0]) < tolerance
    expected_du, *expected = recurrence_vjp(u, *parameters, (False, True), dy)
    assert error(du, expected_du) < tolerance
    for actual, wanted in zip(gradients, expected, strict=True):
        # At one token nothing depends on the poles.
        assert np.all(wanted == 0) or error(actual, wanted) < gradient_tolerance


@pytest.mark.parametrize(("direction", "reverse"), [("forward", (False,)), ("backward", (True,))])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_one_direction(implementation, direction, reverse):
    parameters, u = make_parameters(1, 4, 8), make_input(2, 150, 4)
    y = s4d(u, *parameters, direction=direction, implementation=implementation)
    assert error(y, recurrence(u, *parameters, reverse)[0]) < TOLERANCE[implementation][0]


@pytest.mark.parametrize("length", [1, 40, 200])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_states_in_and_out(implementation, length):
    parameters, u = make_parameters(2, 4, 8), make_input(3, length, 4)
    state = np.random.default_rng(3).normal(size=(2, 3, 4, 8, 2)).astype(np.float32)
    y, last = s4d(
        u,
        *parameters,
        initial_state=jnp.asarray(state),
        return_state=True,
        implementation=implementation,
    )
    complex_state = state[..., 0] + 1j * state[..., 1]
    expected, expected_last = recurrence(u, *parameters, (False, True), complex_state)
    tolerance = TOLERANCE[implementation][0]
    assert error(y, expected) < tolerance
    assert error(last, np.stack([expected_last.real, expected_last.imag], -1)) < tolerance


@pytest.mark.parametrize("length", [128, 150])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradients_of_states_are_the_adjoint(implementation, length):
    """y and the last state are linear in u and the first state, so their inner products agree."""
    parameters, u = make_parameters(2, 3, 8), make_input(2, length, 3)
    rng = np.random.default_rng(3)
    state = jnp.asarray(rng.normal(size=(2, 2, 3, 8, 2)), jnp.float32)

    @jax.jit
    def outputs_and_gradients(u, state, dy, d_last):
        def run(u, state):
            return eager_s4d(
                u,
                *parameters,
                initial_state=state,
                return_state=True,
                implementation=implementation,
            )

        outputs, vjp = jax.vjp(run, u, state)
        return outputs, vjp((dy, d_last))

    d_outputs = (
        make_input(2, length, 6, seed=4),
        jnp.asarray(rng.normal(size=state.shape), jnp.float32),
    )
    outputs, gradients = outputs_and_gradients(u, state, *d_outputs)
    products = [
        [np.vdot(*(np.asarray(x, np.float64) for x in pair)) for pair in zip(*pairs)]
        for pairs in ((outputs, d_outputs), ((u, state), gradients))
    ]
    np.testing.assert_allclose(sum(products[0]), sum(products[1]), rtol=2e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_two_halves_joined_by_their_states_equal_the_whole(implementation):
    parameters, u = make_parameters(2, 4, 8), make_input(2, 220, 4)
    run = functools.partial(s4d, implementation=implementation, return_state=True)
    one_way = [(slice(0, 1), "forward", 1), (slice(1, 2), "backward", -1)]
    whole = s4d(u, *parameters, implementation=implementation)
    for index, (r, direction, order) in enumerate(one_way):
        p = [x[r] for x in parameters]
        state, outputs = None, []
        for half in (u[:, :90], u[:, 90:])[::order]:
            y, state = run(half, *p, direction=direction, initial_state=state)
            outputs.append(y)
        joined = jnp.concatenate(outputs[::order], axis=1)
        assert error(joined, whole[..., 4 * index : 4 * index + 4]) < 2e-5


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_reversing_the_input_swaps_the_directions(implementation):
    parameters, u = make_parameters(2, 4, 8), make_input(2, 100, 4)
    swapped = [x[::-1] for x in parameters]
    forward_first = s4d(u, *parameters, implementation=implementation)
    mirrored = s4d(u[:, ::-1], *swapped, implementation=implementation)[:, ::-1]
    assert error(jnp.roll(mirrored, 4, axis=-1), forward_first) < 2e-5


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_impulse_response_is_the_kernel(implementation):
    """K[l] = 2 Re sum g exp(p l), far beyond one chunk; lag 0 has the skip too."""
    poles, gains, skip = make_parameters(2, 3, 8)
    u = jnp.zeros((1, 300, 3)).at[:, 0].set(1)
    y = s4d(u, poles, gains, skip, implementation=implementation)
    p, g = (np.asarray(x[0], np.float64) for x in (poles, gains))
    p, g = p[..., 0] + 1j * p[..., 1], g[..., 0] + 1j * g[..., 1]
    lags = np.arange(300)[:, None, None]
    kernel = 2 * (g * np.exp(p * lags)).sum(-1).real
    kernel[0] += skip[0]
    assert error(y[0, :, :3], kernel) < 2e-5


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_longest_memory_and_fastest_channel(implementation):
    """Poles that hardly decay over 2,000 tokens, beside some that turn 15 times a token."""
    p = np.zeros((2, 2, 2, 2), np.float32)
    p[:, 0] = [(-5e-5, 0.0), (-5e-5, 3.1)]
    p[:, 1] = [(-0.05, 97.0), (-0.05, 0.3)]
    gains, skip = jnp.full((2, 2, 2, 2), 0.1), jnp.zeros((2, 2))
    u = make_input(1, 2000, 2)
    y = s4d(u, jnp.asarray(p), gains, skip, implementation=implementation)
    expected = recurrence(u, p, gains, skip, (False, True))[0]
    assert error(y, expected) < (5e-4 if implementation == "fft" else 3e-5)


def test_chunk_size_changes_nothing():
    parameters, u = make_parameters(2, 4, 8), make_input(2, 100, 4)

    @functools.partial(jax.jit, static_argnums=0)
    def run(chunk_size):
        options = {"reverse": (False, True), "return_state": False, "chunk_size": chunk_size}
        return chunked(u, *parameters, None, **options)[0]

    for chunk_size in (1, 7, 32, 99, 1000):
        assert error(run(chunk_size), np.asarray(run(100))) < 1e-6


def test_blocks_of_channels_change_nothing():
    """Also where they do not divide the channels."""
    parameters, u = make_parameters(2, 7, 8), make_input(2, 100, 7)
    dy, state = make_input(2, 100, 14, seed=2), jnp.ones((2, 2, 7, 8, 2))

    @functools.partial(jax.jit, static_argnums=0)
    def run(num_blocks):
        options = {"reverse": (False, True), "return_state": True}
        (y, last), vjp = jax.vjp(
            lambda *x: chunked(*x, **options, num_blocks=num_blocks), u, *parameters, state
        )
        return y, last, vjp((dy, last))

    expected = jax.tree.leaves(run(1))
    for num_blocks in (2, 3, 7):
        for actual, wanted in zip(jax.tree.leaves(run(num_blocks)), expected):
            assert error(actual, np.asarray(wanted)) < 2e-6


def test_chunked_needs_little_memory():
    """At most four times u and y for values and gradients of a long sequence."""
    parameters, u = make_parameters(2, 96, 32), make_input(1, 4096, 96)
    dy = make_input(1, 4096, 192)
    compiled = value_and_vjp.lower(None, u, parameters, dy).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 4 * (u.nbytes + dy.nbytes)


def test_default_forms_no_states_for_short_sequences():
    """One chunk needs no recurrence: the compiled program of a short sequence has no loop."""
    parameters, u = make_parameters(2, 4, 8), make_input(2, 64, 4)
    assert "while" not in s4d.lower(u, *parameters).as_text()
    assert "while" in s4d.lower(make_input(2, 640, 4), *parameters).as_text()


def test_discretize_matches_complex_float64():
    rng = np.random.default_rng(0)
    log_dt = rng.uniform(-9, 0, (2, 5)).astype(np.float32)
    log_re = rng.normal(size=(2, 5, 7)).astype(np.float32)
    a_im = (50 * rng.normal(size=(2, 5, 7))).astype(np.float32)
    c = rng.normal(size=(2, 5, 7, 2)).astype(np.float32)
    poles, gains = discretize(*map(jnp.asarray, (log_dt, log_re, a_im, c)), dt_rate=0.5)
    a = -np.exp(log_re.astype(np.float64)) + 1j * a_im
    dt_a = 0.5 * np.exp(log_dt.astype(np.float64))[..., None] * a
    expected = (c[..., 0] + 1j * c[..., 1]) * (np.exp(dt_a) - 1) / a
    assert error(poles, np.stack([dt_a.real, dt_a.imag], -1)) < 1e-6
    np.testing.assert_allclose(gains[..., 0], expected.real, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gains[..., 1], expected.imag, rtol=1e-4, atol=1e-6)


POLES, GAINS, SKIP = make_parameters(2, 4, 8)
U = make_input(2, 10, 4)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((U[0], POLES, GAINS, SKIP), {}, r"u must have shape \[b, l, d\]"),
        ((U[:, :0], POLES, GAINS, SKIP), {}, "u must have shape"),
        ((U.astype(jnp.float16), POLES, GAINS, SKIP), {}, "u must be bfloat16 or float32"),
        ((U, POLES[0], GAINS, SKIP), {}, r"poles must have shape \[r, d, n, 2\]"),
        ((U, POLES[:1], GAINS, SKIP), {}, r"poles must be float32 \(2, 4, 8, 2\)"),
        ((U, POLES.astype(jnp.bfloat16), GAINS, SKIP), {}, "poles must be float32"),
        ((U, POLES, GAINS[:, :3], SKIP), {}, r"gains must be float32 \(2, 4, 8, 2\)"),
        ((U, POLES, GAINS, SKIP[:, :3]), {}, r"skip must be float32 \(2, 4\)"),
        (
            (U, POLES, GAINS, SKIP),
            {"initial_state": jnp.zeros((2, 1, 4, 8, 2))},
            "initial_state must be",
        ),
        (
            (U, POLES, GAINS, SKIP),
            {"implementation": "cuda"},
            "implementation must be None or one of",
        ),
        ((U, POLES, GAINS, SKIP), {"direction": "left"}, "direction must be one of"),
    ],
)
def test_wrong_arguments_are_named(arguments, options, message):
    unchecked = inspect.unwrap(eager_s4d)  # the test run's type checks come before s4d's own
    with pytest.raises(ValueError, match=message):
        unchecked(*arguments, **options)
