"""The fused stack on eight devices, in every arrangement, computes what the loop does on one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffussm_jax.config import MeshConfig, from_dict
from diffussm_jax.parallel import mesh as mesh_lib
from diffussm_jax.parallel.feed import split_rows
from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.training.state import abstract_model, abstract_state
from tests.models.tiny import randomized, tiny


@pytest.fixture(scope="module")
def config():
    values = dataclasses.asdict(tiny(m=1))
    values["data"]["image_size"] = 16
    return from_dict(values)


def value_and_gradients(config, name, mesh):
    """A loss and its gradients by each parameter, and the output of prepared blocks."""
    model = dataclasses.replace(config.model, stack_implementation=name)
    graphdef, _ = abstract_model(dataclasses.replace(config, model=model), mesh)
    _, params = randomized(config)
    places = jax.tree.map(lambda a: a.sharding, abstract_state(config, mesh).params)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 16, 16, 1)).astype(np.float32)
    t, y = rng.integers(0, 50, 8).astype(np.int32), rng.integers(0, 10, 8).astype(np.int32)

    @jax.jit
    def both(params, x, t, y):
        def loss(params):
            output = nnx.merge(graphdef, params)(x, t, y)
            return jnp.mean(jnp.square(output - jnp.cos(3 * x)))

        prepared = nnx.merge(graphdef, params).prepare(16, 16)
        return *jax.value_and_grad(loss)(params), prepared(x, t, y)

    return both(jax.device_put(params, places), *(split_rows(mesh, a) for a in (x, t, y)))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(2, 4, 1), (1, 8, 1), (8, 1, 1), (2, 2, 2)])
def test_eight_devices_compute_what_one_does(config, monkeypatch, sizes):
    monkeypatch.setattr(mesh_lib, "MIN_SPLIT_ELEMENTS", 1)
    actual = value_and_gradients(config, "pallas_tpu", make_mesh(MeshConfig(*sizes)))
    expected = value_and_gradients(config, "xla", make_mesh(devices=jax.devices()[:1]))
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        scale = np.abs(theirs).max() + 1e-12
        np.testing.assert_allclose(ours / scale, theirs / scale, atol=5e-5)
