"""The SSM of a stack on parts of a sequence equals that of the whole, on fake devices."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from diffussm_jax.ops.pallas_tpu import Tiling
from diffussm_jax.parallel.sequence_ssm import SequenceSSM
from tests.ops.s4d_reference import (
    assert_close,
    gelu_and_slope,
    make_input,
    make_ssm,
    value_and_gradients_of,
)
from tests.ops.test_stack_ssm import BACKWARD, BOTH, planes, tokens

pytestmark = pytest.mark.slow
TILING = Tiling(channels=1, interpret=True)


def value_and_gradients(kernels, num_parts, u, ssm, dy):
    """y, du and the SSM's gradients, of layer 1 of a stack of two."""
    axis = kernels.axis
    mesh = jax.make_mesh((num_parts,), (axis,), axis_types=(AxisType.Auto,))
    of_tokens, whole = PartitionSpec(None, axis), PartitionSpec()
    layer = jnp.ones(1, jnp.int32)

    @jax.jit
    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(of_tokens, whole, of_tokens),
        out_specs=(of_tokens, of_tokens, whole),
        check_vma=False,
    )
    def run(u, ssm, dy):
        u, dy = planes(u, kernels.m), planes(dy, kernels.m)
        us, ys = (jnp.full((2, *x.shape), jnp.nan, x.dtype) for x in (u, dy))
        us = us.at[1].set(u)
        tables = kernels.tables(ssm)
        entering = kernels.entering(layer, us, tables)
        y = kernels.forward(layer, us, tables, ys, entering)[1]
        du, d_ssm = kernels.backward(layer, us, ssm, tables, dy)  # which finds `entering` itself
        d_ssm = jax.lax.psum(d_ssm, axis)
        return tokens(y, kernels.m), tokens(du, kernels.m), d_ssm

    return run(u, ssm, dy)


@pytest.mark.parametrize(
    ("num_parts", "m", "reverse", "b", "num_tiles"),
    [(2, 1, BOTH, 3, 2), (4, 2, BOTH, 1, 1), (4, 1, BACKWARD, 9, 3)],
    ids=str,
)
def test_parts_equal_the_whole(num_parts, m, reverse, b, num_tiles):
    length = 128 * m * num_tiles * num_parts
    ssm = make_ssm(len(reverse), 1, 4)
    u, dy = make_input(b, length, 1), make_input(b, length, len(reverse), seed=2)
    kernels = SequenceSSM(m, reverse, TILING, gelu=True, axis="sequence")
    actual = value_and_gradients(kernels, num_parts, u, ssm, dy)
    activated, slope = gelu_and_slope(u)
    y, du, d_ssm = value_and_gradients_of(activated, ssm, reverse, dy)
    assert_close(actual, (y, du * slope, d_ssm))
