"""The SSM's kernels on channel-major activations, in interpret mode."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from diffussm_jax.ops.pallas_tpu import Tiling
from diffussm_jax.ops.pallas_tpu.block import ChannelBlock
from diffussm_jax.ops.pallas_tpu.parameters import unpack
from diffussm_jax.ops.stack_tpu import layout
from diffussm_jax.ops.stack_tpu.ssm import StackedSSM, apply_ssm
from diffussm_jax.ops.stack_tpu.ssm_tiling import SSMShape, refusal, step_for
from tests.ops.s4d_reference import (
    assert_close,
    error,
    gelu_and_slope,
    make_input,
    make_ssm,
    recurrence,
    value_and_gradients_of,
)

DETECTOR = {"interpret": pltpu.InterpretParams(detect_races=True)}
BOTH, FORWARD, BACKWARD = (False, True), (False,), (True,)
# Channels of a step: one, or for bfloat16 the two of a word.
CHANNELS = {jnp.float32: 1, jnp.bfloat16: 2}


def kernels_for(m, reverse=BOTH, dtype=jnp.float32, **options):
    tiling = Tiling(channels=CHANNELS[dtype], interpret=True)
    return StackedSSM(m, reverse, dataclasses.replace(tiling, **options))


def planes(x, m):
    """Tokens [b l e] as [b m*e j]."""
    b, l, e = x.shape
    return jnp.transpose(x.reshape(b, l // m, m, e), (0, 2, 3, 1)).reshape(b, m * e, l // m)


def tokens(x, m):
    """The inverse of `planes`."""
    b, rows, j = x.shape
    return jnp.transpose(x.reshape(b, m, rows // m, j), (0, 3, 1, 2)).reshape(b, m * j, rows // m)


@pytest.mark.parametrize(
    ("m", "reverse", "b", "num_tiles", "dtype"),
    [
        (2, BACKWARD, 3, 2, jnp.float32),
        pytest.param(2, BOTH, 2, 2, jnp.float32, marks=pytest.mark.slow),
        pytest.param(1, BOTH, 1, 8, jnp.float32, marks=pytest.mark.slow),
        pytest.param(4, BOTH, 1, 1, jnp.bfloat16, marks=pytest.mark.slow),
        pytest.param(4, FORWARD, 9, 3, jnp.float32, marks=pytest.mark.slow),
        pytest.param(2, BOTH, 16, 1, jnp.bfloat16, marks=pytest.mark.slow),
        pytest.param(1, BOTH, 8, 3, jnp.bfloat16, marks=pytest.mark.slow),
        pytest.param(8, BACKWARD, 1, 1, jnp.float32, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_value_and_gradients(m, reverse, b, num_tiles, dtype):
    d, l = CHANNELS[dtype], 128 * m * num_tiles
    ssm = make_ssm(len(reverse), d, 4)
    u, dy = make_input(b, l, d, dtype), make_input(b, l, len(reverse) * d, dtype, seed=2)
    kernels = kernels_for(m, reverse, dtype)

    @jax.jit
    def value_and_vjp(u, ssm, dy):
        y, vjp = jax.vjp(lambda u, ssm: tokens(apply_ssm(kernels, planes(u, m), ssm), m), u, ssm)
        return y, *vjp(dy)

    y, du, d_ssm = value_and_vjp(u, ssm, dy)
    assert y.dtype == dtype
    assert_close((y, du, d_ssm), value_and_gradients_of(u, ssm, reverse, dy), dtype)


@pytest.fixture(scope="module")
def expected():
    """u, the SSM, dy, and what the definition gives for them."""
    u, dy = (make_input(2, 256, n, seed=n) for n in (2, 4))
    ssm = make_ssm(2, 2, 4)
    return u, ssm, dy, value_and_gradients_of(u, ssm, BOTH, dy)


def value_and_gradients(kernels, u, ssm, dy):
    """Of layer 1 of a stack of three, whose other layers stay as they are."""
    layer = jnp.ones(1, jnp.int32)
    u, dy = planes(u, kernels.m), planes(dy, kernels.m)
    stack = jnp.full((3, *u.shape), jnp.nan).at[1].set(u)
    y = jnp.full((3, *dy.shape), 7.0)

    @jax.jit
    def run(stack, y, dy, ssm):
        tables = kernels.tables(ssm)
        y = kernels.forward(layer, stack, tables, y)
        return y, kernels.backward(layer, stack, ssm, tables, dy)

    y, gradients = run(stack, y, dy, ssm)
    assert np.all(y[::2] == 7.0)
    du, d_ssm = gradients
    return tokens(y[1], kernels.m), tokens(du, kernels.m), d_ssm


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"strided_roll": False}, {"channels": 2, "interleave": 2}, DETECTOR], ids=str
)
def test_tilings_change_nothing(expected, options, capfd):
    """Neither values nor gradients; and no two grid steps race."""
    *operands, definition = expected
    assert_close(value_and_gradients(kernels_for(2, **options), *operands), definition)
    assert "RACE DETECTED" not in capfd.readouterr().out


@pytest.mark.slow
def test_what_u_adds_to_the_states(expected, capfd):
    u, ssm, *_ = expected
    kernels = kernels_for(2, **DETECTOR)
    rows = kernels.input_planes(planes(u, 2))[None, :, :, None]
    lanes = kernels.leaving(jnp.zeros(1, jnp.int32), rows, kernels.tables(ssm))
    added = unpack(jnp.swapaxes(lanes, 0, 1), (2, 2, *ssm.poles.shape[1:]))
    _, last = recurrence(u, ssm, BOTH)
    assert error(added, np.stack([last.real, last.imag], axis=-1)) < 1e-6
    assert "RACE DETECTED" not in capfd.readouterr().out


@pytest.mark.slow
def test_images_go_in_groups_where_memory_is_small(expected):
    *operands, definition = expected
    shape = SSMShape(2, 2, 2, 128, jnp.float32, BOTH)
    small = next(
        tiling
        for tiling in (kernels_for(2, vmem_bytes=n * 2**10).tiling for n in range(100, 5000))
        if refusal(shape, 4, tiling) is None
    )
    assert step_for(shape, small, gelu=False).num_images == 1
    kernels = dataclasses.replace(kernels_for(2), tiling=small)
    assert_close(value_and_gradients(kernels, *operands), definition)


@pytest.mark.slow
def test_gelu_inside_is_gelu_before(expected):
    u, ssm, dy, _ = expected
    activated, slope = gelu_and_slope(u)
    y, du, d_ssm = value_and_gradients_of(activated, ssm, BOTH, dy)
    kernels = dataclasses.replace(kernels_for(2), gelu=True)
    assert_close(value_and_gradients(kernels, u, ssm, dy), (y, du * slope, d_ssm))


@pytest.mark.parametrize(
    ("m", "dtype"),
    [
        (4, jnp.bfloat16),
        pytest.param(2, jnp.float32, marks=pytest.mark.slow),
        pytest.param(1, jnp.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_rows_are_the_tokens_of_a_chunk_and_go_back(m, dtype):
    """Each row has its chunk's tokens in the stated order, and scattering it undoes the rest."""
    b, c, num_tiles = 3, 4, 2
    block = ChannelBlock(c, m * num_tiles, 8, 128, jnp.dtype(dtype), FORWARD, True, m)
    x = make_input(b, 128 * m * num_tiles, c, dtype)
    u = planes(x, m).reshape(b, m, c, -1)

    def both(u_ref, rows_ref, back_ref, stage_ref):
        def read(q, k, image):
            return u_ref[image, k, :, pl.ds(128 * q, 128)]

        def write(q, k, image, tile):
            back_ref[image, k, :, pl.ds(128 * q, 128)] = tile

        layout.gather(read, rows_ref, stage_ref, block, num_images=b)
        layout.scatter(rows_ref, write, stage_ref, block, num_images=b)

    rows_shape = jax.ShapeDtypeStruct((c, m * num_tiles * 8, 128), dtype)
    stage = layout.stage_shape(block)
    rows, back = pl.pallas_call(
        both,
        out_shape=(rows_shape, jax.ShapeDtypeStruct(u.shape, dtype)),
        scratch_shapes=[pltpu.VMEM(stage.shape, stage.dtype)],
        interpret=True,
    )(u)
    rows = rows.reshape(c, m * num_tiles, 8, 128)
    lanes_of_tokens = block.token(np.arange(128))
    chunks = x.reshape(b, m * num_tiles, 128, c)[:, :, lanes_of_tokens]
    assert np.array_equal(rows[:, :, :b], jnp.transpose(chunks, (3, 1, 0, 2)))
    assert not np.any(rows[:, :, b:])
    assert np.array_equal(back, u)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"m": 3}, "groups of 3 tokens"),
        ({"j": 100}, "100 groups of tokens, no multiple of 128"),
        ({"d": 40}, "40 channels, no multiple of 16"),
        ({"j": 2**20}, "bytes of VMEM"),
    ],
)
def test_what_the_kernels_refuse(changes, reason):
    shape = SSMShape(16, 2, 1152, 512, jnp.bfloat16, BOTH)
    assert refusal(shape, 32, Tiling()) is None
    assert reason in refusal(dataclasses.replace(shape, **changes), 32, Tiling())
    assert "33 pairs" in refusal(shape, 33, Tiling())


def test_a_step_takes_few_images_too_many_to_fit():
    """And no more than divide their number, which is the batch of a chip."""
    shape = SSMShape(16, 2, 1152, 8192, jnp.bfloat16, BOTH)
    assert step_for(shape, Tiling(), gelu=True).num_images == 4
    many = dataclasses.replace(shape, b=128, j=512)
    assert step_for(many, Tiling(), gelu=True).num_images == 64
    odd = dataclasses.replace(shape, b=17, j=512)
    step = step_for(odd, Tiling(), gelu=True)
    assert (step.num_images, step.block.batch) == (17, 24)
