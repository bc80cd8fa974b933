"""The circular operator against the operator on the sequence repeated until it converges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffussm_jax.ops import pairs
from diffussm_jax.ops.circular import circular_s4d, one_turn
from diffussm_jax.shapes import SSM
from tests.ops.s4d_reference import error, make_input, make_ssm, recurrence, recurrence_vjp
from tests.ops.test_s4d import IMPLEMENTATIONS, PALLAS

LENGTH = 40
BOTH = (False, True)
TURNS = 6  # on each side; after them less than 1e-8 of a state is left


def fast_ssm(r, d, n):
    """A layer that forgets within a few turns, so that the repeated sequence stays short."""
    ssm = make_ssm(r, d, n)
    return ssm._replace(poles=ssm.poles.at[..., 0].add(-0.08))


def repeated(x):
    return np.tile(np.asarray(x, np.float64), (1, 2 * TURNS + 1, 1))


def middle(x):
    return x[:, TURNS * LENGTH : (TURNS + 1) * LENGTH]


QUICK = ("fft", "chunked", PALLAS)


@pytest.mark.parametrize(
    "implementation",
    [pytest.param(x, marks=() if x in QUICK else pytest.mark.slow) for x in IMPLEMENTATIONS],
)
def test_it_is_the_operator_on_the_repeated_sequence(implementation):
    ssm, u, dy = fast_ssm(2, 3, 4), make_input(2, LENGTH, 3), make_input(2, LENGTH, 6, seed=2)

    @jax.jit
    def value_and_vjp(u, ssm, dy):
        run = functools.partial(circular_s4d, implementation=implementation)
        y, vjp = jax.vjp(run, u, ssm)
        return y, vjp(dy)

    y, (du, d_ssm) = value_and_vjp(u, ssm, dy)
    assert error(y, middle(recurrence(repeated(u), ssm, BOTH)[0])) < 1e-5
    # The loss reads the middle period; each period of the input is the same array.
    only_middle = repeated(np.zeros_like(dy))
    only_middle[:, TURNS * LENGTH : (TURNS + 1) * LENGTH] = dy
    of_repeated, expected = recurrence_vjp(repeated(u), ssm, BOTH, only_middle)
    assert error(du, of_repeated.reshape(2, -1, LENGTH, 3).sum(axis=1)) < 1e-5
    for gradient, other in zip(d_ssm, expected, strict=True):
        assert error(gradient, other) < 1e-4


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_it_begins_anywhere(direction):
    """Rolling the input rolls the output, in filters that hardly decay over the length too."""
    ssm, u = make_ssm(1, 4, 8), make_input(2, 150, 4)
    run = jax.jit(functools.partial(circular_s4d, direction=direction))
    y, rolled = run(u, ssm), run(jnp.roll(u, 37, axis=1), ssm)
    assert error(jnp.roll(rolled, -37, axis=1), np.asarray(y)) < 2e-5


@pytest.mark.parametrize("length", [64, 5000])
def test_a_power_near_one_keeps_its_digits(length):
    poles = np.array([[-1e-6, 0.0], [-1e-6, 2 * np.pi / 64], [-1e-4, 3.0]], np.float32)
    p = poles.astype(np.float64) @ np.array([1, 1j])
    less_one = np.expm1(p.real * length) + 0j
    less_one = less_one * np.exp(1j * p.imag * length) + np.expm1(1j * p.imag * length)
    computed = pairs.long_expm1(pairs.unpack(jnp.asarray(poles)), length)
    ours = np.asarray(computed[0], np.float64) + 1j * np.asarray(computed[1], np.float64)
    np.testing.assert_allclose(np.abs(ours / less_one - 1), 0, atol=1e-5)


def test_one_turn_is_circular_convolution_with_the_filter_of_the_length():
    ssm, u = make_ssm(1, 3, 8), make_input(2, LENGTH, 3)
    impulse = np.zeros((1, LENGTH, 3))
    impulse[:, 0] = 1
    kernel = recurrence(impulse, ssm, (False,))[0]
    spectrum = np.fft.rfft(np.asarray(u, np.float64), axis=1) * np.fft.rfft(kernel, axis=1)
    y = circular_s4d(u, one_turn(ssm, LENGTH), direction="forward")
    assert error(y, np.fft.irfft(spectrum, n=LENGTH, axis=1)) < 1e-5
    assert isinstance(one_turn(ssm, LENGTH), SSM)
