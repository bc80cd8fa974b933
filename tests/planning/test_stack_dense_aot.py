"""The dense kernels of the fused stack through the real TPU compiler, at XL's sizes."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import pytest

from diffussm_jax.ops.stack_tpu import dense
from diffussm_jax.ops.stack_tpu.choose import stack_tiling_for
from diffussm_jax.ops.stack_tpu.dense_tiling import BlockShape, fit
from diffussm_jax.ops.stack_tpu.parameters import (
    DenseParameters,
    Linear,
    backward_layout,
    forward_layout,
)
from diffussm_jax.planning import tpu_compiler

pytestmark = [
    pytest.mark.slow,
    pytest.mark.tpu_aot,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is for Linux"),
]
WIDTH, BATCH, LAYERS = 1152, 4, 2
DTYPE = jnp.bfloat16
Shape = jax.ShapeDtypeStruct


def parameters(m, r, d):
    def linear(num_inputs, num_outputs, *members):
        shapes = (*members, num_inputs, num_outputs), (*members, num_outputs)
        return Linear(*(Shape(shape, jnp.float32) for shape in shapes))

    return DenseParameters(
        w0=linear(d, d),
        w_up=linear(d, m * d),
        w_down=linear(r * d, 2 * d // m, m),
        w1=linear(d, 2 * d),
        w2=linear(2 * d, 2 * d),
        w3=linear(2 * d, d),
    )


def calls(m, r, j, num_vectors, residual_dtype):
    """The arguments of each kernel."""
    d = WIDTH
    weights = parameters(m, r, d)
    forward = jax.eval_shape(functools.partial(forward_layout, dtype=DTYPE), weights)
    backward = jax.eval_shape(functools.partial(backward_layout, dtype=DTYPE), weights)

    def rows(n, dtype=DTYPE):
        return Shape((BATCH, n, j), dtype)

    def stack(n, dtype=DTYPE, num_layers=LAYERS):
        return Shape((num_layers, BATCH, n, j), dtype)

    layer = Shape((1,), jnp.int32)
    xs, moments = stack(d, residual_dtype, LAYERS + 1), stack(2, jnp.float32)
    vectors = Shape((BATCH, num_vectors, d), DTYPE)
    dx, hidden, wide, y = rows(d, residual_dtype), stack(d), stack(2 * d), stack(m * r * d)
    read = (xs, moments, vectors)
    return {
        dense.up: (layer, xs, vectors, forward, moments, hidden, stack(m * d)),
        dense.down: (layer, *read, y, forward, wide, wide, wide),
        dense.gate_back: (layer, dx, *read, wide, wide, backward),
        dense.hidden_back: (layer, rows(2 * d), wide, backward),
        dense.wide_back: (layer, y, rows(2 * d), backward),
        dense.up_back: (layer, dx, *read, hidden, rows(m * d), rows(d), backward),
    }


@pytest.mark.parametrize("name", ["up", "down", "gate_back", "hidden_back", "wide_back", "up_back"])
@pytest.mark.parametrize(
    ("topology", "m", "r", "j", "num_vectors", "residual_dtype"),
    [
        ("v5e:2x2", 2, 2, 512, 2, "float32"),
        *(
            pytest.param(*case, marks=pytest.mark.nightly)
            for case in [
                ("v5e:2x2", 2, 2, 512, 2, "bfloat16"),
                ("v5e:2x2", 4, 1, 1024, 3, "float32"),
                ("v5e:2x2", 1, 2, 640, 3, "bfloat16"),
                ("v5p:2x2x1", 2, 2, 512, 2, "float32"),
                ("v6e:2x2", 2, 2, 512, 2, "float32"),
                ("tpu7x:2x2x1", 2, 2, 512, 2, "float32"),
            ]
        ),
    ],
)
def test_the_kernel_compiles(name, topology, m, r, j, num_vectors, residual_dtype):
    """It fits the VMEM that `fit` counts on."""
    device = tpu_compiler.devices(topology)[0]
    shape = BlockShape(WIDTH, j, m, r, residual_dtype=residual_dtype)
    tiling = fit(stack_tiling_for(device.device_kind).dense, shape)
    function = getattr(dense, name)
    arguments = calls(m, r, j, num_vectors, residual_dtype)[function]
    run = functools.partial(function, tiling=tiling)
    assert f"dense_{name}" in tpu_compiler.compile_for(device, run, *arguments).as_text()
