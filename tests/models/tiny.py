"""Tiny backbones, inputs for them, and the checks that every backbone passes."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from diffussm_jax.config import MeshConfig, from_dict
from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.training.state import abstract_model, init_params
from tests.conftest import TINY_MODEL


def tiny(num_classes=10, **model):
    return from_dict({"model": TINY_MODEL | model, "data": {"num_classes": num_classes}})


def inputs(num_classes=10, side=8):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, side, side, 1)), jnp.float32)
    return x, jnp.array([0, 7, 49]), jnp.array([1, 2, 10]) if num_classes else None


def randomized(config, seed=0):
    """A model whose zero-initialised layers are random too: every path carries something."""
    graphdef, _ = abstract_model(config)
    params, treedef = jax.tree.flatten(jax.jit(lambda: init_params(config))())
    rng = np.random.default_rng(seed)
    params = [a + 0.2 * rng.normal(size=a.shape).astype(np.float32) for a in params]
    return graphdef, jax.tree.unflatten(treedef, params)


def assert_gradients_reach_all(config):
    graphdef, params = randomized(config)

    @jax.jit
    def gradients(params):
        def total(params):
            output = nnx.merge(graphdef, params)(*inputs())
            return jnp.sum(jnp.square(output)), output

        return jax.grad(total, has_aux=True)(params)

    grads, output = gradients(params)
    assert output.shape == (3, 8, 8, 2)
    assert output.dtype == jnp.float32
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all(), path
        assert np.any(grad != 0), jax.tree_util.keystr(path)


def loss_with_tangent(graphdef, params, x, t, y):
    """Return a loss like MeanFlow's: of the output and its derivative along a path of x and t."""
    v = jnp.cos(3 * x)

    def model(x, t):
        return nnx.merge(graphdef, params)(x, t, y)

    u, tangent = jax.jvp(model, (x, t), (v, jnp.ones_like(t)))
    return jnp.mean(jnp.square(u + 0.3 * jax.lax.stop_gradient(tangent) - 1))


def assert_same_on_a_mesh(config, *, rtol):
    """Values, and gradients through a derivative in forward mode, as a mean flow's loss takes."""
    _, params = randomized(config)
    x, t, y = (jnp.concatenate([part, part[:1]]) for part in inputs())
    meshes = None, make_mesh(MeshConfig(data=2, fsdp=2, sequence=2))
    (alone, grads), (split, split_grads) = (
        jax.jit(jax.value_and_grad(loss_with_tangent, argnums=1), static_argnums=0)(
            abstract_model(config, mesh)[0], params, x, t.astype(jnp.float32) / 50, y
        )
        for mesh in meshes
    )
    np.testing.assert_allclose(split, alone, rtol=rtol)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-3, atol=1e-3 * np.abs(b).max()),
        split_grads,
        grads,
    )
