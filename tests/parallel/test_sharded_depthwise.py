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
