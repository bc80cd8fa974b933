"""Properties of the backbone, and its parameter count against the paper's."""

import dataclasses
import operator
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffussm_jax.config import SIZES, from_dict
from diffussm_jax.config.network import SSMImplementation
from diffussm_jax.models import create_model
from diffussm_jax.models.backbone import group, ungroup
from diffussm_jax.models.block import Block
from diffussm_jax.models.layers import sincos2d
from diffussm_jax.ops.s4d import s4d
from diffussm_jax.training.state import abstract_model
from tests.conftest import TINY_MODEL
from tests.models.tiny import assert_gradients_reach_all, inputs, randomized, tiny

OPTIONS = [
    {},
    {"m": 1},
    {"m": 4},
    {"patch_size": 2},
    {"direction": "forward"},
    {"gate": True},
    {"position": "none"},
    {"share_ssm": True},
    {"dtype": "bfloat16"},
    {"dtype": "bfloat16", "residual_dtype": "bfloat16"},
    {"remat": "full"},
    {"remat": "dots", "scan_unroll": 2},
    {"ssm_implementation": "scan"},
]
IMAGENET = {"data": {"space": "latents", "image_size": 256, "num_classes": 1000, "channels": 3}}
XL_PARAMETERS = 673_088_272


def count(values) -> int:
    _, params = abstract_model(from_dict(values))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_output_shape_and_gradients_reach_every_parameter(options):
    assert_gradients_reach_all(tiny(**options))


@pytest.mark.parametrize("remat", ["dots", "full"])
@pytest.mark.parametrize("name", [x for x in get_args(SSMImplementation) if x != "pallas_tpu"])
def test_every_implementation_can_be_recomputed(name, remat):
    graphdef, params = abstract_model(tiny(ssm_implementation=name, remat=remat))
    gradient = jax.grad(lambda params: nnx.merge(graphdef, params)(*inputs()).sum())
    assert jax.tree.structure(jax.eval_shape(gradient, params)) == jax.tree.structure(params)


def test_a_model_that_is_told_more_begins_as_the_one_that_is_not():
    """The embeddings of an interval and of a guidance scale start at zero, but are trained."""
    flow = {"process": "flow", "prediction": "v", "variance": "none"}
    values = {"model": TINY_MODEL, "diffusion": flow, "sample": {"sampler": "euler"}}
    more = values | {"diffusion": flow | {"process": "mean_flow"}, "guidance": {"max_scale": 4.0}}
    x, _, y = inputs()
    t = jnp.array([0.1, 2.0, 4.0])
    told = jnp.stack([t, 0.5 * t, 0.3 * t], axis=-1)
    graphdef, plain = randomized(from_dict(values))
    graphdef_more, params = randomized(from_dict(more))
    added = {name: params[name] for name in ("interval", "guidance_scale")}
    at_start = jax.tree.map(jnp.copy, added)
    for embedding in at_start.values():
        embedding["out"] = jax.tree.map(jnp.zeros_like, embedding["out"])
    expected = nnx.merge(graphdef, plain)(x, t, y)
    started, trained = (nnx.merge(graphdef_more, plain | z)(x, told, y) for z in (at_start, added))
    np.testing.assert_array_equal(started, expected)
    assert np.abs(trained - expected).max() > 0.01


def test_options_that_only_change_the_computation_change_no_value():
    graphdef, params = randomized(tiny())
    expected = nnx.merge(graphdef, params)(*inputs())
    for options in (
        {"remat": "full"},
        {"remat": "dots"},
        {"scan_unroll": 2},
        {"ssm_implementation": "fft"},
    ):
        graphdef, _ = abstract_model(tiny(**options))
        actual = nnx.merge(graphdef, params)(*inputs())
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_scan_over_layers_equals_a_loop():
    config = tiny()
    graphdef, params = randomized(config)
    model = nnx.merge(graphdef, params)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 32, 16)), jnp.float32)
    c = jnp.asarray(np.random.default_rng(2).normal(size=(2, 16)), jnp.float32)
    expected = x
    for layer in range(config.model.depth):
        block = jax.tree.map(operator.itemgetter(layer), model.blocks)
        expected = block(expected, c)
    np.testing.assert_allclose(model.run_blocks(x, c, (8, 8)), expected, rtol=1e-5, atol=1e-5)


def test_blocks_are_the_identity_and_the_output_zero_at_the_start():
    model = create_model(tiny(), rngs=nnx.Rngs(0))
    x = jnp.ones((2, 32, 16))
    np.testing.assert_array_equal(model.run_blocks(x, jnp.ones((2, 16)), (8, 8)), x)
    np.testing.assert_array_equal(model(*inputs()), 0)


def test_block_matches_the_equations_of_the_paper():
    """The hourglass written out token by token: W_up[k] and W_down[k] of each token l = j m + k."""
    config = dataclasses.replace(tiny().model, m=2)
    block = Block(config, apply_s4d=s4d, rngs=nnx.Rngs(3))
    leaves, treedef = jax.tree.flatten(block)
    rng = np.random.default_rng(0)
    leaves = [a + 0.3 * rng.normal(size=a.shape).astype(np.float32) for a in leaves]
    block = jax.tree.unflatten(treedef, leaves)
    d, m = config.width, config.m
    x, c = (
        rng.normal(size=(2, 5, d)).astype(np.float32),
        rng.normal(size=(2, d)).astype(np.float32),
    )

    def dense(layer, v):
        return v @ layer.kernel[...] + layer.bias[...]

    gelu = jax.nn.gelu
    shift, scale = np.split(np.asarray(dense(block.modulation.linear, jax.nn.silu(c))), 2, axis=-1)
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    i = normal * (1 + scale[:, None]) + shift[:, None]
    u = np.zeros((2, 5 * m, d), np.float32)
    for k in range(m):
        w_up, bias = (
            block.w_up.kernel[:, k * d : (k + 1) * d],
            block.w_up.bias[k * d : (k + 1) * d],
        )
        u[:, k::m] = gelu(gelu(dense(block.w0, i)) @ w_up + bias)
    y = np.asarray(block.ssm(jnp.asarray(u)))
    parts = [gelu(y[:, k::m] @ block.w_down.kernel[k] + block.w_down.bias[k]) for k in range(m)]
    i_down = np.concatenate(parts, axis=-1)
    o = dense(block.w3, gelu(dense(block.w2, i_down)) * gelu(dense(block.w1, i)))
    np.testing.assert_allclose(block(jnp.asarray(x), jnp.asarray(c)), x + o, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("patch_size", [1, 2])
@pytest.mark.parametrize("m", [1, 2, 4])
def test_group_keeps_raster_order(m, patch_size):
    x = jnp.arange(2 * 8 * 8 * 3, dtype=jnp.float32).reshape(2, 8, 8, 3)
    grouped = group(x, patch_size, m)
    p = patch_size
    tokens = [x[0, r : r + p, c : c + p].ravel() for r in range(0, 8, p) for c in range(0, 8, p)]
    np.testing.assert_array_equal(grouped[0].ravel(), jnp.concatenate(tokens))
    np.testing.assert_array_equal(ungroup(grouped, 8, 8, patch_size), x)


def test_position_code_is_that_of_the_groups_centre():
    fine, coarse = sincos2d(4, 8, 1, 32), sincos2d(4, 4, 1, 32)
    pairs = sincos2d(4, 8, 2, 32)
    np.testing.assert_allclose(pairs[:, :16], coarse[:, :16], atol=1e-6)  # rows are the same
    columns = (np.arange(8).reshape(4, 2).mean(1))[:, None] * 10_000.0 ** (-np.arange(8) / 8)
    expected = np.concatenate([np.cos(columns), np.sin(columns)], axis=1)
    np.testing.assert_allclose(pairs[:4, 16:], expected, atol=1e-5)
    assert len(np.unique(np.round(fine, 5), axis=0)) == 32


def test_runs_at_another_resolution():
    graphdef, params = randomized(tiny())
    assert nnx.merge(graphdef, params)(*inputs(side=12)).shape == (3, 12, 12, 2)


def test_unconditional_model_has_no_label_table():
    config = tiny(num_classes=0)
    graphdef, params = randomized(config)
    assert "label" not in params
    x, t, _ = inputs()
    assert nnx.merge(graphdef, params)(x, t, None).shape == (3, 8, 8, 2)


def test_parameter_counts():
    def of_size(name, **model):
        depth, width = SIZES[name]
        return count(IMAGENET | {"model": {"depth": depth, "width": width} | model})

    xl = of_size("XL")
    assert abs(xl / 673e6 - 1) < 0.01  # the paper's figure
    assert xl == XL_PARAMETERS
    assert 700e6 < of_size("XL", gate=True) < 715e6
    assert of_size("S") < of_size("B") < of_size("L") < xl
