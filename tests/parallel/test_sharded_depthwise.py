"""Depthwise convolution on a mesh equals that of one device, on 8 fake devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffussm_jax.config import MeshConfig
from diffussm_jax.ops.depthwise import convolution
from diffussm_jax.parallel.depthwise import shard_convolve
from diffussm_jax.parallel.mesh import make_mesh


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 1, 8)], ids=str)
def test_values_and_gradients(sizes):
    """Of 13 rows of a kernel, eight devices need those of others that are six devices away."""
    rng = np.random.default_rng(0)
    x, dy = (jnp.asarray(rng.normal(size=(8, 8, 4, 3)), jnp.float32) for _ in range(2))
    kernel = jnp.asarray(rng.normal(size=(13, 13, 1, 3)), jnp.float32)

    def run(convolve):
        y, vjp = jax.vjp(convolve, x, kernel)
        return y, *vjp(dy)

    sharded = shard_convolve(make_mesh(MeshConfig(*sizes)))
    expected = jax.jit(lambda: run(convolution))()
    for ours, theirs in zip(jax.jit(lambda: run(sharded))(), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("sizes", [(4, 2, 1), (1, 1, 8)], ids=str)
@pytest.mark.parametrize("closed", [(True, False), (True, True)], ids=str)
def test_closed_axes_go_on_at_the_other_edge(sizes, closed):
    """Of 21 rows of a kernel, some are those of the same device, once around the image."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(8, 8, 4, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(21, 21, 1, 3)), jnp.float32)
    run = jax.jit(shard_convolve(make_mesh(MeshConfig(*sizes)), closed=closed))
    height, width = (10 * is_closed for is_closed in closed)
    around = jnp.pad(x, ((0, 0), (height, height), (width, width), (0, 0)), mode="wrap")
    expected = jax.jit(convolution)(around, kernel)[:, height : height + 8, width : width + 4]
    np.testing.assert_allclose(run(x, kernel), expected, atol=2e-4)
