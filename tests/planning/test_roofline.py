"""Counting what a compiled program must move and multiply, on programs small enough to count."""

import jax
import jax.numpy as jnp
import pytest

from diffussm_jax.planning.hlo import Program
from diffussm_jax.planning.roofline import bound, kernels, link_bytes

# As XLA writes a program for a GPU: one layer of a stack a round, its product saved in place.
LOOP = """HloModule jit_f, is_scheduled=true

FileNames
1 "/home/me/diffussm_jax/models/block.py"
2 "/site-packages/flax/linear.py"
3 "/home/me/train.py"

FunctionNames
1 "block"
2 "linear"
3 "main"

FileLocations
1 {file_name_id=1 function_name_id=1 line=83 end_line=83 column=9 end_column=12}
2 {file_name_id=2 function_name_id=2 line=20 end_line=20 column=9 end_column=12}
3 {file_name_id=3 function_name_id=3 line=5 end_line=5 column=9 end_column=12}

StackFrames
1 {file_location_id=3 parent_frame_id=1}
2 {file_location_id=1 parent_frame_id=2}
3 {file_location_id=2 parent_frame_id=3}


%gemm (x: bf16[16,32], w: bf16[8,32,64], i: s32[], saved: bf16[8,16,64]) -> bf16[8,16,64] {
  %x = bf16[16,32]{1,0} parameter(0)
  %w = bf16[8,32,64]{2,1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  %slice = bf16[1,32,64]{2,1,0} dynamic-slice(%w, %i, %zero, %zero), \
dynamic_slice_sizes={1,32,64}
  %view = bf16[32,64]{1,0} bitcast(%slice)
  %dot = bf16[16,64]{1,0} dot(%x, %view), lhs_contracting_dims={1}, rhs_contracting_dims={0}, \
metadata={op_name="dot" stack_frame_id=3}
  %row = bf16[1,16,64]{2,1,0} bitcast(%dot)
  %saved = bf16[8,16,64]{2,1,0} parameter(3)
  ROOT %update = bf16[8,16,64]{2,1,0} dynamic-update-slice(%saved, %row, %i, %zero, %zero)
}

%next (i: s32[]) -> s32[] {
  %i = s32[] parameter(0)
  %one = s32[] constant(1)
  ROOT %sum = s32[] add(%i, %one)
}

%body (state: (s32[], bf16[16,32], bf16[8,32,64], bf16[8,16,64])) -> (s32[], bf16[16,32], \
bf16[8,32,64], bf16[8,16,64]) {
  %state = (s32[], bf16[16,32]{1,0}, bf16[8,32,64]{2,1,0}, bf16[8,16,64]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = bf16[16,32]{1,0} get-tuple-element(%state), index=1
  %w = bf16[8,32,64]{2,1,0} get-tuple-element(%state), index=2
  %saved = bf16[8,16,64]{2,1,0} get-tuple-element(%state), index=3
  %gemm_fusion = bf16[8,16,64]{2,1,0} fusion(%x, %w, %i, %saved), kind=kCustom, calls=%gemm
  %next_fusion = s32[] fusion(%i), kind=kLoop, calls=%next
  ROOT %tuple = (s32[], bf16[16,32]{1,0}, bf16[8,32,64]{2,1,0}, bf16[8,16,64]{2,1,0}) \
tuple(%next_fusion, %x, %w, %gemm_fusion)
}

%compare (i: s32[]) -> pred[] {
  %i = s32[] parameter(0)
  %end = s32[] constant(8)
  ROOT %less = pred[] compare(%i, %end), direction=LT
}

%condition (state: (s32[], bf16[16,32], bf16[8,32,64], bf16[8,16,64])) -> pred[] {
  %state = (s32[], bf16[16,32]{1,0}, bf16[8,32,64]{2,1,0}, bf16[8,16,64]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  ROOT %compare_fusion = pred[] fusion(%i), kind=kLoop, calls=%compare
}

ENTRY %main (x: bf16[16,32], w: bf16[8,32,64], saved: bf16[8,16,64]) -> bf16[8,16,64] {
  %x = bf16[16,32]{1,0} parameter(0)
  %w = bf16[8,32,64]{2,1,0} parameter(1)
  %saved = bf16[8,16,64]{2,1,0} parameter(2)
  %zero = s32[] constant(0)
  %start = (s32[], bf16[16,32]{1,0}, bf16[8,32,64]{2,1,0}, bf16[8,16,64]{2,1,0}) \
tuple(%zero, %x, %w, %saved)
  %while = (s32[], bf16[16,32]{1,0}, bf16[8,32,64]{2,1,0}, bf16[8,16,64]{2,1,0}) while(%start), \
condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"8"}}
  %all = bf16[8,16,64]{2,1,0} get-tuple-element(%while), index=3
  ROOT %gemm = (bf16[8,16,16]{2,1,0}, s8[4194304]{0}) custom-call(%all, %all), \
custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{\
"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],"lhs_batch_dimensions":["0"]}}}
}
"""


def test_a_loop_over_layers_reads_one_layer_a_round():
    work = {x.name: x for x in kernels(Program(LOOP))}
    assert set(work) == {"gemm_fusion", "next_fusion", "gemm"}
    layer = work["gemm_fusion"]
    assert layer.rounds == 8
    assert layer.multiply_adds == 16 * 32 * 64
    read = 2 * (16 * 32 + 32 * 64) + 4  # x, one layer's weights, the index
    assert layer.num_bytes == read + 2 * 16 * 64
    assert layer.source == "models/block.py:83"


def test_the_room_that_a_library_call_works_in_is_no_traffic():
    gemm = {x.name: x for x in kernels(Program(LOOP))}["gemm"]
    assert gemm.multiply_adds == 8 * 16 * 16 * 64
    assert gemm.num_bytes == 2 * (2 * 8 * 16 * 64 + 8 * 16 * 16)


def test_the_bound_adds_the_longer_of_products_and_memory():
    program = Program(LOOP)
    layer, gemm = 8 * (2 * (16 * 32 + 32 * 64 + 16 * 64) + 4), 2 * (2 * 8 * 16 * 64 + 8 * 16 * 16)
    index = 8 * 8
    by_memory = bound(program, peak_flops=1e30, bandwidth=1e9)
    assert by_memory.num_bytes == layer + gemm + index
    assert by_memory.multiply_adds == 8 * 16 * 32 * 64 + 8 * 16 * 16 * 64
    assert by_memory.seconds == pytest.approx((layer + gemm + index) / 1e9)
    assert by_memory.memory_share == 1
    assert [x.name for x in by_memory.work] == ["gemm_fusion", "gemm", "next_fusion"]
    # At 5 operations a byte the products are what takes long, except for the loop's index.
    mixed = bound(program, peak_flops=5e9, bandwidth=1e9)
    seconds = 2 * by_memory.multiply_adds / 5e9 + index / 1e9
    assert mixed.seconds == pytest.approx(seconds)
    assert mixed.memory_share == pytest.approx(index / 1e9 / seconds)


def test_the_cache_spares_what_it_held_before_and_holds_after():
    """A layer moves more bytes than twice this cache, the loop's index fewer."""
    cached = bound(Program(LOOP), peak_flops=1e30, bandwidth=1e9, cache_bytes=1000)
    layer, gemm = 2 * (16 * 32 + 32 * 64 + 16 * 64) + 4, 2 * (2 * 8 * 16 * 64 + 8 * 16 * 16)
    assert cached.seconds == pytest.approx((8 * (layer - 2000) + gemm - 2000) / 1e9)
    assert cached.uncached_seconds == pytest.approx((8 * layer + gemm + 64) / 1e9)


def test_a_collective_exchanges_the_complete_array():
    """A start hands its operand on beside its result."""
    text = """ENTRY %main (x: bf16[256,8], y: f32[4]) -> (bf16[1024,8], f32[4]) {
  %x = bf16[256,8]{1,0} parameter(0)
  %y = f32[4]{0} parameter(1)
  %gather = (bf16[256,8]{1,0}, bf16[1024,8]{1,0}) all-gather-start(%x), channel_id=1
  %all = bf16[1024,8]{1,0} all-gather-done(%gather)
  %scatter = ((bf16[1024,8]{1,0}), bf16[256,8]{1,0}) reduce-scatter-start(%all), channel_id=2
  %part = bf16[256,8]{1,0} reduce-scatter-done(%scatter)
  %sum = f32[4]{0} all-reduce(%y), channel_id=3
  ROOT %both = (bf16[1024,8]{1,0}, f32[4]{0}) tuple(%all, %sum)
}
"""
    whole = 2 * 1024 * 8
    sizes = {"all-gather": whole, "reduce-scatter": whole, "all-reduce": 2 * 16}
    assert link_bytes(Program(text)) == sizes
    assert list(kernels(Program(text))) == []


# A convolution of four inputs and eight outputs in two groups, and cuDNN's two gradients of it.
CONVOLUTIONS = """ENTRY %main (x: f32[2,6,6,4], w: f32[8,3,3,2], dy: f32[2,6,6,8]) -> f32[8,3,3,2] {
  %x = f32[2,6,6,4]{3,2,1,0} parameter(0)
  %w = f32[8,3,3,2]{3,2,1,0} parameter(1)
  %dy = f32[2,6,6,8]{3,2,1,0} parameter(2)
  %y = f32[2,6,6,8]{3,2,1,0} convolution(%x, %w), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_o01i->b01f, feature_group_count=2
  %dx = (f32[2,6,6,4]{3,2,1,0}, u8[0]{0}) custom-call(%dy, %w), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_o01i->b01f, feature_group_count=2, custom_call_target="__cudnn$convBackwardInput"
  %dw = (f32[8,3,3,2]{3,2,1,0}, u8[0]{0}) custom-call(%x, %dy), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_o01i->b01f, feature_group_count=2, custom_call_target="__cudnn$convBackwardFilter"
  ROOT %result = f32[8,3,3,2]{3,2,1,0} get-tuple-element(%dw), index=0
}
"""


def test_a_convolutions_gradients_multiply_as_often_as_it_does():
    work = {x.name: x.multiply_adds for x in kernels(Program(CONVOLUTIONS))}
    assert work == dict.fromkeys(("y", "dx", "dw"), 2 * 6 * 6 * 8 * 3 * 3 * 2)


def products(a, b):
    return jnp.tanh(a @ b).sum(axis=0), a * 2


def updated(a, b):
    return jax.lax.dynamic_update_slice(a, b[:8] + 1, (0, 0))


@pytest.mark.parametrize("function", [products, updated])
def test_bytes_agree_with_xlas_own_analysis(function):
    x = jax.ShapeDtypeStruct((512, 512), jnp.float32)
    compiled = jax.jit(function, donate_argnums=0).lower(x, x).compile()
    counted = bound(Program(compiled.as_text()), peak_flops=1.0, bandwidth=1.0)
    assert counted.num_bytes == pytest.approx(compiled.cost_analysis()["bytes accessed"], rel=0.03)
