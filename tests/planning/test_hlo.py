"""What a compiled program's text says of its collectives."""

from diffussm_jax.planning.hlo import collectives

# A loop of three rounds that starts two collectives on a SparseCore, as the compiler of a TPU7x
# writes it: both have channel 1. A third runs in the program itself, in two parts.
TEXT = """HloModule jit_step

%gathers.1 (x: f32[4]) -> f32[64] {
  %x = f32[4]{0} parameter(0)
  ROOT %all-gather.1 = f32[64]{0} all-gather(%x), channel_id=1, dimensions={0}
}, execution_thread="sparsecore"

%scatters.2 (x.1: f32[64]) -> f32[4] {
  %x.1 = f32[64]{0} parameter(0)
  ROOT %reduce-scatter.2 = f32[4]{0} reduce-scatter(%x.1), channel_id=1, to_apply=%add
}, execution_thread="sparsecore"

%body.3 (carry: (s32[], f32[4])) -> (s32[], f32[4]) {
  %y = f32[4]{0} get-tuple-element(%carry), index=1
  %started = ((f32[4]{0}), f32[64]{0}) call-start(%y), to_apply=%gathers.1, metadata={}
  %gathered = f32[64]{0} call-done(%started)
  %started.1 = ((f32[64]{0}), f32[4]{0}) call-start(%gathered), to_apply=%scatters.2
  %scattered = f32[4]{0} call-done(%started.1)
}

%condition.4 (carry.1: (s32[], f32[4])) -> pred[] {
  %three = s32[] constant(3)
}

ENTRY %main.5 (z: f32[4]) -> f32[4] {
  %z = f32[4]{0} parameter(0)
  %sum = f32[4]{0} all-reduce(%z), channel_id=7, to_apply=%add
  %sum.1 = f32[8]{0} all-reduce(%z), channel_id=7, to_apply=%add
  %loop = (s32[], f32[4]{0}) while(%start), condition=%condition.4, body=%body.3
}
"""


def test_collectives_of_loops_and_sparse_cores_are_counted():
    expected = {"all-gather": 3 * 64 * 4, "reduce-scatter": 3 * 4 * 4, "all-reduce": 8 * 4}
    assert collectives(TEXT) == expected
