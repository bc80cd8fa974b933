"""Depthwise convolution against a loop over all places, as XLA's convolution and as a product."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffussm_jax.ops import depthwise

FORMS = {"convolution": depthwise.convolution, "product": depthwise.product}
SHAPE, SIDE = (2, 5, 4, 3), 3


def arrays(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=SHAPE), rng.normal(size=(SIDE, SIDE, 1, SHAPE[-1]))
    return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)


def by_loop(x, kernel):
    """The sum over the taps of each place, in float64; beyond the edges x is zero."""
    x, kernel, (_, h, w, _) = np.float64(x), np.float64(kernel), x.shape
    y = np.zeros(x.shape)
    for i, j, u, v in np.ndindex(h, w, *kernel.shape[:2]):
        row, column = i + u - len(kernel) // 2, j + v - len(kernel) // 2
        if 0 <= row < h and 0 <= column < w:
            y[:, i, j] += kernel[u, v, 0] * x[:, row, column]
    return y


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_sum_over_taps(form):
    np.testing.assert_allclose(FORMS[form](*arrays()), by_loop(*arrays()), atol=1e-5)


@pytest.mark.parametrize("side", [1, 7, 13])
def test_kernels_that_reach_beyond_both_edges(side):
    x, _ = arrays()
    kernel = jnp.asarray(np.random.default_rng(1).normal(size=(side, side, 1, 3)), jnp.float32)
    for convolve in FORMS.values():
        np.testing.assert_allclose(convolve(x, kernel), by_loop(x, kernel), atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_a_halo_are_read_and_not_written(form):
    x, kernel = arrays()
    whole = FORMS[form](x, kernel)
    part = FORMS[form](x[:, 1:5], kernel, has_halo=True)
    np.testing.assert_allclose(part, whole[:, 2:4], atol=1e-5)


def test_gradients_of_both_forms_agree():
    x, kernel = arrays()
    dy = jnp.cos(x)
    (dx, dk), expected = (jax.vjp(convolve, x, kernel)[1](dy) for convolve in FORMS.values())
    np.testing.assert_allclose(dx, expected[0], atol=1e-5)
    np.testing.assert_allclose(dk, expected[1], atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_is_near_float32(form):
    expected = FORMS[form](*arrays())
    y = FORMS[form](*arrays(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert jnp.linalg.norm(y - expected) < 0.01 * jnp.linalg.norm(expected)


@pytest.mark.parametrize(
    ("side", "platform", "primitive"),
    [
        (16, "cpu", "dot_general"),
        (17, "cpu", "conv_general_dilated"),
        (16, "tpu", "conv_general_dilated"),
        (16, "cuda", "conv_general_dilated"),
    ],
)
def test_a_cpu_multiplies_matrices_on_small_grids(side, platform, primitive):
    x, kernel = jnp.zeros((1, side, side, 2)), jnp.zeros((3, 3, 1, 2))
    run = functools.partial(depthwise.convolve, platform=platform)
    program = str(jax.make_jaxpr(run)(x, kernel))
    assert [x for x in ("dot_general", "conv_general_dilated") if x in program] == [primitive]
