"""The SSM of a stack on parts of a sequence equals that of the whole, on fake devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from diffussm_jax.ops.pallas_tpu import Tiling
from diffussm_jax.ops.pallas_tpu.block import ChannelBlock
from diffussm_jax.ops.pallas_tpu.parameters import pack, unpack
from diffussm_jax.ops.stack_tpu.ssm import StackedSSM
from diffussm_jax.ops.stack_tpu.ssm_states import entering_part
from diffussm_jax.parallel.sequence_ssm import SequenceSSM
from tests.ops.s4d_reference import error, make_input, make_ssm, recurrence, recurrence_vjp
from tests.ops.test_stack_ssm import planes, tokens

pytestmark = pytest.mark.slow
TILING = Tiling(channels=1, interpret=True)
BOTH, FORWARD, BACKWARD = (False, True), (False,), (True,)


def value_and_gradients(kernels, u, ssm, dy):
    """y, du and the SSM's gradients, each device's part between the first and the last token."""
    (axis,), num_parts = [kernels.axis], u.shape[1] // (128 * kernels.m)
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
        du, d_ssm = kernels.backward(layer, us, ssm, tables, dy, entering)
        d_ssm = jax.lax.psum(d_ssm, axis)
        return tokens(y, kernels.m), tokens(du, kernels.m), d_ssm

    return run(u, ssm, dy)


@pytest.mark.parametrize(
    ("num_parts", "m", "reverse", "b"),
    [(2, 1, BOTH, 2), (4, 2, BOTH, 1), (4, 1, BACKWARD, 9), (4, 1, FORWARD, 1)],
    ids=str,
)
def test_parts_equal_the_whole(num_parts, m, reverse, b):
    ssm = make_ssm(len(reverse), 1, 4)
    u = make_input(b, 128 * m * num_parts, 1)
    dy = make_input(b, u.shape[1], len(reverse), seed=2)
    kernels = SequenceSSM(m, reverse, TILING, axis="sequence")
    y, du, d_ssm = value_and_gradients(kernels, u, ssm, dy)
    assert error(y, recurrence(u, ssm, reverse)[0]) < 1e-6
    expected_du, expected_d_ssm = recurrence_vjp(u, ssm, reverse, dy)
    assert error(du, expected_du) < 1e-6
    for actual, expected in zip(d_ssm, expected_d_ssm, strict=True):
        assert error(actual, expected) < 1e-5


def test_the_state_that_enters_a_part():
    """The sum over the parts before it, each decayed over the parts in between."""
    r, b, d, n, num_parts, num_chunks = 2, 1, 1, 4, 3, 3
    ssm = make_ssm(r, d, n)
    rng = np.random.default_rng(1)
    shape = num_parts, r, b, d, n
    added = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    packed = jax.vmap(pack)(jnp.asarray(np.stack([added.real, added.imag], -1), jnp.float32))
    tables = StackedSSM(1, BOTH, TILING).tables(ssm)
    block = ChannelBlock(1, num_chunks, 8, 128, jnp.dtype(jnp.float32), BOTH, True)
    chain = functools.partial(entering_part, block=block, tiling=TILING, of_gradient=False)
    p = np.asarray(ssm.poles, np.float64)
    p = np.exp(128 * num_chunks * (p[..., 0] + 1j * p[..., 1]))[:, None]
    for part in range(num_parts):
        forward = sum(p[0] ** (part - 1 - k) * added[k, 0] for k in range(part))
        backward = sum(p[1] ** (k - part - 1) * added[k, 1] for k in range(part + 1, num_parts))
        expected = np.stack([forward + np.zeros((b, d, n)), backward + np.zeros((b, d, n))])
        lanes = jax.jit(chain)(jnp.swapaxes(packed, 1, 2), jnp.int32(part), tables)
        actual = unpack(jnp.swapaxes(lanes, 0, 1), (r, b, d, n, 2))
        assert error(actual, np.stack([expected.real, expected.imag], -1)) < 1e-6
