"""Attention on a mesh equals that of one device, on 8 fake devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffussm_jax.config import MeshConfig
from diffussm_jax.ops import attention as ops
from diffussm_jax.parallel.attention import shard_attention
from diffussm_jax.parallel.mesh import make_mesh


@pytest.mark.parametrize(
    "flash", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["xla", "flash"]
)
def test_values_and_gradients(flash, monkeypatch):
    """Each device has a part of the images and of the queries, and runs what one device runs."""
    if flash:
        kernel = functools.partial(ops.flash_tpu, interpret=True)
        monkeypatch.setattr(ops.jax.nn, "dot_product_attention", kernel)
    shape = (4, 512 if flash else 16, 2, 8)
    rng = np.random.default_rng(0)
    *qkv, dy = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(4))
    sharded = shard_attention(make_mesh(MeshConfig(fsdp=2, sequence=2)))

    def run(attend):
        y, vjp = jax.vjp(attend, *qkv)
        return y, *vjp(dy)

    expected = run(functools.partial(ops.attention, implementation="xla"))
    for x, y in zip(jax.jit(lambda: run(sharded))(), expected, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)
