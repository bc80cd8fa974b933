"""Networks on images without an edge: what is rolled along a closed axis comes out rolled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffussm_jax.config import MeshConfig
from diffussm_jax.models import closed_scans
from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.training.state import abstract_model
from tests.models.tiny import inputs, randomized, tiny

DIT = {"name": "dit", "num_heads": 4, "kernel_size": 5}
MODELS = {
    "diffussm": {},
    "rows": DIT | {"mixer": "s4d", "scan_orders": "rows"},
    "columns": DIT | {"mixer": "s4d", "scan_orders": "columns"},
    "convnext": DIT | {"mixer": "convnext"},
    "delta_conv": DIT | {"mixer": "delta_conv", "pyramid": (1,)},
    "levels": DIT | {"mixer": "convnext", "levels": (1, 1, 1)},
}
SHIFT = 4  # pixels, a whole number of tokens at every level
CASES = [
    ("diffussm", (True, False), 1),
    pytest.param("rows", (True, True), 1, marks=pytest.mark.slow),
    pytest.param("columns", (False, True), 2, marks=pytest.mark.slow),
    pytest.param("convnext", (True, True), 1, marks=pytest.mark.slow),
    ("convnext", (False, True), 2),
    pytest.param("delta_conv", (True, True), 2, marks=pytest.mark.slow),
    pytest.param("levels", (True, True), 1, marks=pytest.mark.slow),
    pytest.param("levels", (False, True), 2, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "closed", "axis"), CASES)
def test_a_rolled_image_comes_out_rolled(name, closed, axis):
    config = tiny(**MODELS[name], position="none")
    _, params = randomized(config)
    x, t, y = inputs()

    def roll(closed):
        graphdef, _ = abstract_model(config, make_mesh(devices=jax.devices()[:1]), closed=closed)
        model = jax.jit(lambda params, x: nnx.merge(graphdef, params)(x, t, y))
        rolled = model(params, jnp.roll(x, SHIFT, axis))
        return np.asarray(jnp.roll(rolled, -SHIFT, axis) - model(params, x))

    assert np.abs(roll(closed)).max() < 1e-3
    assert np.abs(roll((False, False))).max() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", ["diffussm", "columns", "convnext"])
def test_on_a_mesh_it_is_what_one_device_computes(name):
    config = tiny(**MODELS[name])
    _, params = randomized(config)
    x, t, y = (jnp.concatenate([part, part[:1]]) for part in inputs())
    meshes = make_mesh(devices=jax.devices()[:1]), make_mesh(MeshConfig(2, 1, 4))
    alone, split = (
        jax.jit(lambda params, x, graphdef: nnx.merge(graphdef, params)(x, t, y), static_argnums=2)(
            params, x, abstract_model(config, mesh, closed=(True, True))[0]
        )
        for mesh in meshes
    )
    np.testing.assert_allclose(split, alone, atol=1e-4)


def test_a_scan_is_closed_where_its_axis_is():
    both = functools.partial(closed_scans, tiny(**DIT, mixer="s4d").model)
    assert both((True, False)) == (True, False)
    assert closed_scans(tiny(**MODELS["columns"]).model, (True, False)) == (False,)
    assert closed_scans(tiny().model, (False, True)) == (False,)
