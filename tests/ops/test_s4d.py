"""One suite for every implementation of s4d, against a float64 recurrence from the definition."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffussm_jax.ops import s4d as eager
from diffussm_jax.ops.chunked import chunked
from diffussm_jax.ops.pallas_tpu import Tiling
from diffussm_jax.ops.s4d import Implementation, discretize
from diffussm_jax.shapes import SSM
from tests.ops.s4d_reference import (
    error,
    make_input,
    make_ssm,
    recurrence,
    recurrence_vjp,
    value_and_vjp,
)

s4d = jax.jit(eager.s4d, static_argnames=("direction", "implementation"))
s4d_with_state = jax.jit(eager.s4d_with_state, static_argnames=("direction", "implementation"))

PALLAS = Implementation("pallas_tpu", tiling=Tiling(channels=1, interpret=True))
ON_GPU = Implementation("chunked", backend="gpu")
IMPLEMENTATIONS = ["scan", "associative_scan", "fft", "chunked", ON_GPU, PALLAS]
NAMES = {ON_GPU: "chunked on gpu", PALLAS: "pallas_tpu"}
# Relative L2 errors of y and du, then of the parameter gradients.
TOLERANCE = {
    "scan": (2e-5, 1e-4),
    "associative_scan": (2e-5, 1e-4),
    "fft": (5e-6, 1e-5),
    "chunked": (1e-6, 1e-5),
    ON_GPU: (1e-6, 1e-5),
    PALLAS: (1e-6, 1e-5),
}
BFLOAT16_TOLERANCE = (5e-3, 2e-2)
SHAPES = [(1, 1, 3, 2), (2, 5, 8, 1), (1, 64, 4, 32), (3, 200, 8, 8), (2, 333, 5, 16)]  # b l d n
QUICK = {
    ((1, 1, 3, 2), jnp.float32),
    ((2, 5, 8, 1), jnp.bfloat16),
    ((1, 64, 4, 32), jnp.bfloat16),
    ((2, 333, 5, 16), jnp.float32),
}
LONG = {((2, 333, 5, 16), jnp.float32)}
QUICK_OF = {ON_GPU: LONG, PALLAS: LONG}
# The TPU kernel pads all of these to whole chunks, so the short ones are the same program.
CASES = [
    pytest.param(
        implementation,
        shape,
        dtype,
        marks=() if (shape, dtype) in QUICK_OF.get(implementation, QUICK) else pytest.mark.slow,
        id=f"{name}-{shape}-{dtype.__name__}",
    )
    for implementation in IMPLEMENTATIONS
    for name in [NAMES.get(implementation, implementation)]
    for shape in (SHAPES[2:] if implementation == PALLAS else SHAPES)
    for dtype in (jnp.float32, jnp.bfloat16)
]
# For the test of wrong arguments.
U, LAYER = make_input(2, 10, 4), make_ssm(2, 4, 8)


@pytest.mark.parametrize(("implementation", "shape", "dtype"), CASES)
def test_value_and_gradients(implementation, shape, dtype):
    b, l, d, n = shape
    tolerance, gradient_tolerance = (
        TOLERANCE[implementation] if dtype == jnp.float32 else BFLOAT16_TOLERANCE
    )
    ssm = make_ssm(2, d, n)
    u, dy = make_input(b, l, d, dtype), make_input(b, l, 2 * d, dtype, seed=2)
    y, (du, d_ssm) = value_and_vjp(implementation, u, ssm, dy)
    assert y.dtype == dtype
    assert error(y, recurrence(u, ssm, (False, True))[0]) < tolerance
    expected_du, expected_d_ssm = recurrence_vjp(u, ssm, (False, True), dy)
    assert error(du, expected_du) < tolerance
    for actual, expected in zip(d_ssm, expected_d_ssm, strict=True):
        # At one token nothing depends on the poles.
        assert np.all(expected == 0) or error(actual, expected) < gradient_tolerance


@pytest.mark.parametrize(("direction", "reverse"), [("forward", (False,)), ("backward", (True,))])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_one_direction(implementation, direction, reverse):
    ssm, u = make_ssm(1, 4, 8), make_input(2, 150, 4)
    y = s4d(u, ssm, direction=direction, implementation=implementation)
    assert error(y, recurrence(u, ssm, reverse)[0]) < TOLERANCE[implementation][0]


@pytest.mark.parametrize("length", [1, 40, 200])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_states_in_and_out(implementation, length):
    ssm, u = make_ssm(2, 4, 8), make_input(3, length, 4)
    state = np.random.default_rng(3).normal(size=(2, 3, 4, 8, 2)).astype(np.float32)
    y, last = s4d_with_state(
        u, ssm, initial_state=jnp.asarray(state), implementation=implementation
    )
    complex_state = state[..., 0] + 1j * state[..., 1]
    expected, expected_last = recurrence(u, ssm, (False, True), complex_state)
    tolerance = TOLERANCE[implementation][0]
    assert error(y, expected) < tolerance
    assert error(last, np.stack([expected_last.real, expected_last.imag], -1)) < tolerance


@pytest.mark.parametrize("length", [150, pytest.param(128, marks=pytest.mark.slow)])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradients_of_states_are_the_adjoint(implementation, length):
    """y and the last state are linear in u and the first state, so their inner products agree."""
    ssm, u = make_ssm(2, 3, 8), make_input(2, length, 3)
    rng = np.random.default_rng(3)
    state = jnp.asarray(rng.normal(size=(2, 2, 3, 8, 2)), jnp.float32)

    @jax.jit
    def outputs_and_gradients(u, state, dy, d_last):
        def run(u, state):
            return eager.s4d_with_state(u, ssm, initial_state=state, implementation=implementation)

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
    ssm, u = make_ssm(2, 4, 8), make_input(2, 220, 4)
    run = functools.partial(s4d_with_state, implementation=implementation)
    whole = s4d(u, ssm, implementation=implementation)
    for index, (direction, order) in enumerate([("forward", 1), ("backward", -1)]):
        one_way = SSM(*(x[index : index + 1] for x in ssm))
        state, outputs = None, []
        for half in (u[:, :90], u[:, 90:])[::order]:
            y, state = run(half, one_way, direction=direction, initial_state=state)
            outputs.append(y)
        joined = jnp.concatenate(outputs[::order], axis=1)
        assert error(joined, whole[..., 4 * index : 4 * index + 4]) < 2e-5


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_reversing_the_input_swaps_the_directions(implementation):
    ssm, u = make_ssm(2, 4, 8), make_input(2, 100, 4)
    swapped = SSM(*(x[::-1] for x in ssm))
    forward_first = s4d(u, ssm, implementation=implementation)
    mirrored = s4d(u[:, ::-1], swapped, implementation=implementation)[:, ::-1]
    assert error(jnp.roll(mirrored, 4, axis=-1), forward_first) < 2e-5


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_impulse_response_is_the_kernel(implementation):
    """K[l] = 2 Re sum g exp(p l), far beyond one chunk; lag 0 has the skip too."""
    ssm = make_ssm(2, 3, 8)
    u = jnp.zeros((1, 300, 3)).at[:, 0].set(1)
    y = s4d(u, ssm, implementation=implementation)
    p, g = (np.asarray(x[0], np.float64) for x in (ssm.poles, ssm.gains))
    p, g = p[..., 0] + 1j * p[..., 1], g[..., 0] + 1j * g[..., 1]
    lags = np.arange(300)[:, None, None]
    kernel = 2 * (g * np.exp(p * lags)).sum(-1).real
    kernel[0] += ssm.skip[0]
    assert error(y[0, :, :3], kernel) < 2e-5


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_longest_memory_and_fastest_channel(implementation):
    """Poles that hardly decay over 2,000 tokens, beside some that turn 15 times a token."""
    p = np.zeros((2, 2, 2, 2), np.float32)
    p[:, 0] = [(-5e-5, 0.0), (-5e-5, 3.1)]
    p[:, 1] = [(-0.05, 97.0), (-0.05, 0.3)]
    ssm = SSM(jnp.asarray(p), gains=jnp.full((2, 2, 2, 2), 0.1), skip=jnp.zeros((2, 2)))
    u = make_input(1, 2000, 2)
    y = s4d(u, ssm, implementation=implementation)
    expected = recurrence(u, ssm, (False, True))[0]
    # The recurrences multiply by one rounded decay 2,000 times: 3e-5 on a CPU, 5e-5 on an H100.
    assert error(y, expected) < (5e-4 if implementation == "fft" else 6e-5)


def test_chunk_size_changes_nothing():
    ssm, u = make_ssm(2, 4, 8), make_input(2, 100, 4)

    @functools.partial(jax.jit, static_argnums=0)
    def run(chunk_size):
        options = {"reverse": (False, True), "return_state": False, "chunk_size": chunk_size}
        return chunked(u, ssm, None, **options)[0]

    for chunk_size in (1, 7, 32, 99, 1000):
        assert error(run(chunk_size), np.asarray(run(100))) < 1e-6


def test_blocks_of_channels_change_nothing():
    """Also where they do not divide the channels."""
    ssm, u = make_ssm(2, 7, 8), make_input(2, 100, 7)
    dy, state = make_input(2, 100, 14, seed=2), jnp.ones((2, 2, 7, 8, 2))

    @functools.partial(jax.jit, static_argnums=0)
    def run(num_blocks):
        options = {"reverse": (False, True), "return_state": True}
        (y, last), vjp = jax.vjp(
            lambda *x: chunked(*x, **options, num_blocks=num_blocks), u, ssm, state
        )
        return y, last, vjp((dy, last))

    expected = jax.tree.leaves(run(1))
    for num_blocks in (2, 3, 7):
        for actual, of_one_block in zip(jax.tree.leaves(run(num_blocks)), expected):
            assert error(actual, np.asarray(of_one_block)) < 2e-6


def test_chunked_needs_little_memory():
    """At most four times u and y for values and gradients of a long sequence."""
    ssm, u = make_ssm(2, 96, 32), make_input(1, 4096, 96)
    dy = make_input(1, 4096, 192)
    compiled = value_and_vjp.lower(None, u, ssm, dy).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 4 * (u.nbytes + dy.nbytes)


def test_default_forms_no_states_for_short_sequences():
    """One chunk needs no recurrence: the compiled program of a short sequence has no loop."""
    ssm, u = make_ssm(2, 4, 8), make_input(2, 64, 4)
    assert "while" not in s4d.lower(u, ssm).as_text()
    assert "while" in s4d.lower(make_input(2, 640, 4), ssm).as_text()


def test_discretize_matches_complex_float64():
    rng = np.random.default_rng(0)
    log_dt = rng.uniform(-9, 0, (2, 5)).astype(np.float32)
    log_re = rng.normal(size=(2, 5, 7)).astype(np.float32)
    a_im = (50 * rng.normal(size=(2, 5, 7))).astype(np.float32)
    b, c = rng.normal(size=(2, 2, 5, 7, 2)).astype(np.float32)
    skip = rng.normal(size=(2, 5)).astype(np.float32)
    poles, gains, same_skip = discretize(
        *map(jnp.asarray, (log_dt, log_re, a_im, b, c, skip)), dt_rate=0.5
    )
    a = -np.exp(log_re.astype(np.float64)) + 1j * a_im
    dt_a = 0.5 * np.exp(log_dt.astype(np.float64))[..., None] * a
    b, c = (x[..., 0] + 1j * x[..., 1] for x in (b, c))
    expected = b * c * (np.exp(dt_a) - 1) / a
    assert error(poles, np.stack([dt_a.real, dt_a.imag], -1)) < 1e-6
    np.testing.assert_allclose(gains[..., 0], expected.real, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gains[..., 1], expected.imag, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(same_skip, skip)


@pytest.mark.parametrize("operator", [eager.s4d, eager.s4d_with_state])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"u": U[0]}, r"u must have shape \[b, l, d\]"),
        ({"u": U[:, :0]}, "u must have shape"),
        ({"u": U.astype(jnp.float16)}, "u must be bfloat16 or float32"),
        ({"poles": LAYER.poles[0]}, r"poles must have shape \[r, d, n, 2\]"),
        ({"poles": LAYER.poles[:1]}, r"poles must be float32 \(2, 4, 8, 2\)"),
        ({"poles": LAYER.poles.astype(jnp.bfloat16)}, "poles must be float32"),
        ({"gains": LAYER.gains[:, :3]}, r"gains must be float32 \(2, 4, 8, 2\)"),
        ({"skip": LAYER.skip[:, :3]}, r"skip must be float32 \(2, 4\)"),
        ({"initial_state": jnp.zeros((2, 1, 4, 8, 2))}, "initial_state must be"),
        ({"implementation": "cuda"}, "implementation must be None or one of"),
        ({"direction": "left"}, "direction must be one of"),
    ],
)
def test_wrong_arguments_are_named(operator, arguments, message):
    unchecked = inspect.unwrap(operator)  # the test run's type checks come before s4d's own
    ssm = LAYER._replace(**{name: x for name, x in arguments.items() if name in SSM._fields})
    options = {name: x for name, x in arguments.items() if name not in SSM._fields}
    with pytest.raises(ValueError, match=message):
        unchecked(**{"u": U, "ssm": ssm} | options)
