"""The SSM's kernels of the fused stack through the real TPU compiler."""

import dataclasses
import importlib.util
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffussm_jax.ops.pallas_tpu import tiling_for
from diffussm_jax.ops.s4d import abstract_ssm
from diffussm_jax.ops.stack_tpu.ssm import StackedSSM
from diffussm_jax.ops.stack_tpu.ssm_tiling import SSMShape, refusal
from diffussm_jax.parallel.sequence_ssm import SequenceSSM
from diffussm_jax.planning import tpu_compiler

pytestmark = [
    pytest.mark.slow,
    pytest.mark.tpu_aot,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is for Linux"),
]
WIDTH, NUM_PAIRS, LIMIT_SECONDS = 128, 32, 120
BOTH = (False, True)
EVERYWHERE, OF_TOKENS = PartitionSpec(), PartitionSpec(None, None, None, "sequence")


def both_kernels(kernels):
    """Both passes on a layer of a stack."""

    def run(layer, u, ssm, y):
        tables = kernels.tables(ssm)
        y = kernels.forward(layer, u, tables, y)
        return y, kernels.backward(layer, u, ssm, tables, y[1])

    return run


def operands(m, b, j, dtype=jnp.bfloat16):
    u = jax.ShapeDtypeStruct((3, b, m * WIDTH, j), dtype)
    y = jax.ShapeDtypeStruct((3, b, 2 * m * WIDTH, j), dtype)
    return jax.ShapeDtypeStruct((1,), jnp.int32), u, abstract_ssm(2, WIDTH, NUM_PAIRS), y


@pytest.mark.parametrize(
    ("topology", "m", "b", "j", "dtype"),
    [
        ("v5e:2x2", 2, 8, 128, jnp.bfloat16),
        ("v5e:2x2", 4, 3, 256, jnp.bfloat16),
        pytest.param("v5e:2x2", 1, 16, 128, jnp.bfloat16, marks=pytest.mark.nightly),
        pytest.param("v5e:2x2", 2, 8, 128, jnp.float32, marks=pytest.mark.nightly),
        pytest.param("v5e:2x2", 2, 64, 2048, jnp.bfloat16, marks=pytest.mark.nightly),
        pytest.param("v5p:2x2x1", 2, 8, 128, jnp.bfloat16, marks=pytest.mark.nightly),
        pytest.param("v6e:2x2", 2, 8, 128, jnp.bfloat16, marks=pytest.mark.nightly),
        pytest.param("tpu7x:2x2x1", 2, 8, 128, jnp.bfloat16, marks=pytest.mark.nightly),
    ],
    ids=str,
)
def test_both_kernels_compile(topology, m, b, j, dtype):
    """They read gelu(u), and take no more processor time than the limit."""
    device = tpu_compiler.devices(topology)[0]
    kernels = StackedSSM(m, BOTH, tiling_for(device.device_kind), gelu=True)
    start = time.process_time()
    compiled = tpu_compiler.compile_for(device, both_kernels(kernels), *operands(m, b, j, dtype))
    assert time.process_time() - start < LIMIT_SECONDS
    assert {"ssm_forward", "ssm_backward"} <= set(kernel_names(compiled))


@pytest.mark.nightly
def test_parts_of_a_sequence():
    """Four chips share the tokens of each image."""
    devices = np.array(tpu_compiler.devices("v5e:2x2"))
    mesh = Mesh(devices, ("sequence",), axis_types=(AxisType.Auto,))
    tiling = tiling_for(devices[0].device_kind)
    kernels = SequenceSSM(2, BOTH, tiling, gelu=True, axis="sequence")
    run = jax.shard_map(
        both_kernels(kernels),
        mesh=mesh,
        in_specs=(EVERYWHERE, OF_TOKENS, EVERYWHERE, OF_TOKENS),
        out_specs=(OF_TOKENS, (PartitionSpec(None, None, "sequence"), EVERYWHERE)),
        check_vma=False,
    )

    def place(x, spec):
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), x)

    layer, u, ssm, y = operands(2, 2, 1024)
    places = EVERYWHERE, OF_TOKENS, EVERYWHERE, OF_TOKENS
    lowered = jax.jit(run).lower(*map(place, (layer, u, ssm, y), places))
    names = kernel_names(tpu_compiler.compile_lowered(lowered))
    assert set(names) == {"ssm_leaving", "ssm_entering", "ssm_forward", "ssm_backward"}


@pytest.mark.nightly
def test_v4_has_too_little_memory():
    """The compiler refuses even the shortest images, and so does the rule."""
    device = tpu_compiler.devices("v4:2x2x1")[0]
    tiling = tiling_for(device.device_kind)
    assert "bytes of VMEM" in refusal(
        SSMShape(1, 2, WIDTH, 128, jnp.bfloat16, BOTH), NUM_PAIRS, tiling
    )
    kernels = StackedSSM(2, BOTH, dataclasses.replace(tiling, vmem_bytes=2**30))
    with pytest.raises(jax.errors.JaxRuntimeError, match="Exceeded vmem capacity"):
        tpu_compiler.compile_for(device, both_kernels(kernels), *operands(2, 1, 128))


def kernel_names(compiled):
    return [call.name for call in tpu_compiler.cycles(compiled.as_text()).kernels]
