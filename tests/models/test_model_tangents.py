"""Backbones have derivatives in x and t, and a loss of these has gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.tiny import inputs, loss_with_tangent, randomized, tiny

BACKBONES = {"diffussm": {}, "dit": {"name": "dit", "num_heads": 4}}


def value_and_gradients(config):
    graphdef, params = randomized(config)
    x, _, y = inputs()
    loss = functools.partial(loss_with_tangent, graphdef)
    t = jnp.array([0.4, 2.0, 3.6])
    return jax.jit(jax.value_and_grad(loss))(params, x, t, y)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_tangent_is_the_slope(backbone):
    graphdef, params = randomized(tiny(**BACKBONES[backbone]))
    x, _, y = inputs()
    v = jnp.sin(x)

    @jax.jit
    def model(step):
        return nnx.merge(graphdef, params)(x + step * v, jnp.array([0.4, 2.0, 3.6]) + step, y)

    _, tangent = jax.jvp(model, (0.0,), (1.0,))
    slope = (model(1e-2) - model(-1e-2)) / 2e-2
    assert jnp.linalg.norm(tangent - slope) < 2e-3 * jnp.linalg.norm(slope)


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("diffussm", {"ssm_implementation": "fft"}),
        pytest.param("diffussm", {"remat": "full"}, marks=pytest.mark.slow),
        pytest.param("diffussm", {"remat": "dots", "scan_unroll": 2}, marks=pytest.mark.slow),
        pytest.param("dit", {"remat": "dots"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_gradients_do_not_depend_on_the_computation(backbone, options):
    expected = value_and_gradients(tiny(**BACKBONES[backbone]))
    actual = value_and_gradients(tiny(**BACKBONES[backbone], **options))
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5 * np.abs(y).max() + 1e-12)
