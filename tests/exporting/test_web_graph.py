"""The network of a page: computed from constants as far as it goes, and the same as the model."""

import sys
from shutil import which

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffussm_jax.config import from_dict
from diffussm_jax.errors import UserError
from diffussm_jax.exporting.web import runtime
from diffussm_jax.exporting.web.folding import folded
from diffussm_jax.exporting.web.graph import model_graph, network
from tests.conftest import TINY_MODEL
from tests.models.tiny import randomized

DIT = {"name": "dit", "num_heads": 2}
MEAN_FLOW = {
    "diffusion": {"process": "mean_flow", "variance": "none", "prediction": "v"},
    "guidance": {"max_scale": 4.0},
    "sample": {"sampler": "euler"},
}
CASES = {
    "diffussm": {},
    "in_chunks": {"side": 16},
    "without_classes": {"num_classes": 0},
    "mean_flow_told_its_scale": MEAN_FLOW,
    "one_filter": {"model": {"share_ssm": True, "gate": True}},
    "attention": {"model": DIT | {"mixer": "attention"}},
    "s4d": {"model": DIT | {"mixer": "s4d"}},
    "delta_conv": {"model": DIT | {"mixer": "delta_conv", "kernel_size": 3, "pyramid": (1, 2)}},
    "convnext": {"model": DIT | {"mixer": "convnext", "kernel_size": 3}},
    "dico": {"model": DIT | {"mixer": "dico"}},
    "pattern": {"model": DIT | {"mixers": ("s4d", "attention")}},
    "levels": {"model": DIT | {"mixer": "dico", "levels": (1, 1, 1)}},
}


def make(*, side=8, num_classes=10, model=None, **sections):
    data = {"num_classes": num_classes, "image_size": side, "channels": 1}
    return from_dict({"model": TINY_MODEL | (model or {}), "data": data} | sections)


def inputs(config):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3, *config.grid)).astype(np.float32)
    told = rng.uniform(0, 50, size=(3, len(config.conditions))).astype(np.float32)
    labels = np.array([0, 3, 10], np.int32)
    return (x, told, labels)[: 3 if config.data.num_classes else 2]


def shapes(arrays):
    return [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]


def expected(config, graphdef, params, arrays):
    output = nnx.merge(graphdef, params)(*map(jnp.asarray, arrays))
    return np.asarray(output)[..., : config.grid[2]]


@pytest.mark.parametrize(
    "side, growth",
    [(8, 2), pytest.param(16, 4, marks=pytest.mark.slow)],  # one chunk, and several
)
def test_what_depends_on_parameters_alone_is_computed_beforehand(side, growth):
    config = make(side=side)
    graphdef, params = randomized(config)
    arrays = inputs(config)
    closed = jax.make_jaxpr(folded(network(config, params), *shapes(arrays)))(*arrays)
    names = {equation.primitive.name for equation in closed.eqns}
    assert not names & {"exp", "scan", "while", "stack", "tile", "custom_jvp_call", "jit"}
    # Nor are matrices stored that are made of filters.
    num_parameters = sum(x.size for x in jax.tree.leaves(params))
    assert sum(x.size for x in closed.consts) < growth * num_parameters
    ours = jax.jit(lambda: jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *arrays)[0])()
    theirs = expected(config, graphdef, params, arrays)
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())


def test_missing_packages_are_named(monkeypatch):
    config = make()
    _, params = randomized(config)
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(UserError, match=r"needs jax2onnx.*pip install 'diffussm-jax\[web\]'"):
        model_graph(config, params, num_images=2)
    monkeypatch.setattr(runtime.shutil, "which", lambda *_, **__: None)
    with pytest.raises(UserError, match=r"needs npm.*pip install 'diffussm-jax\[web\]'"):
        runtime.runtime_files()


@pytest.mark.skipif(which("npm") is None, reason="npm is missing")
def test_what_npm_says_is_the_reason(monkeypatch, tmp_path):
    settings = {"registry": "http://127.0.0.1:9/", "cache": str(tmp_path), "fetch_retries": "0"}
    for name, value in settings.items():
        monkeypatch.setenv(f"npm_config_{name}", value)
    with pytest.raises(UserError, match=r"npm cannot get: npm \S+ code ECONNREFUSED$"):
        runtime.runtime_files()


@pytest.mark.browser
@pytest.mark.filterwarnings("default")  # of the converter
@pytest.mark.parametrize("case", CASES)
def test_the_graph_computes_what_the_model_does(case):
    onnxruntime = pytest.importorskip("onnxruntime", reason="make test-page installs it")
    config = make(**CASES[case])
    graphdef, params = randomized(config)
    arrays = inputs(config)
    graph = model_graph(config, params, num_images=3)
    session = onnxruntime.InferenceSession(graph)
    (ours,) = session.run(None, dict(zip(("x_t", "told", "labels"), arrays)))
    theirs = expected(config, graphdef, params, arrays)
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())
