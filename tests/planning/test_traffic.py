"""What programs read and write, counted by hand from their text and from their arrays."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest

from diffussm_jax.planning import tpu_compiler
from diffussm_jax.planning.traffic import hbm_bytes

MIB = 2**20
# A loop of 5 rounds: each takes a row of a stack [5, 1024], and writes its sum with what a fusion
# makes of it into the stack's copy. %vmem never leaves the core.
TEXT = """\
%slices (p.0: f32[5,1024], p.1: s32[]) -> f32[1024] {
  %p.0 = f32[5,1024]{1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %row = f32[1,1024]{1,0} dynamic-slice(%p.0, %p.1), dynamic_slice_sizes={1,1024}
  ROOT %flat = f32[1024]{0} bitcast(%row)
}

%updates (q.0: f32[5,1024], q.1: f32[1024], q.2: s32[]) -> f32[5,1024] {
  %q.0 = f32[5,1024]{1,0} parameter(0)
  %q.1 = f32[1024]{0} parameter(1)
  %q.2 = s32[] parameter(2)
  %wide = f32[1,1024]{1,0} bitcast(%q.1)
  ROOT %stack = f32[5,1024]{1,0} dynamic-update-slice(%q.0, %wide, %q.2)
}

%body (x: (s32[], f32[5,1024])) -> (s32[], f32[5,1024]) {
  %x = (s32[], f32[5,1024]{1,0}) parameter(0)
  %i = s32[]{:S(6)} get-tuple-element(%x), index=0
  %a = f32[5,1024]{1,0:T(8,128)} get-tuple-element(%x), index=1
  %one = f32[1024]{0} fusion(%a, %i), kind=kLoop, calls=%slices
  %vmem = f32[1024]{0:T(1024)S(1)} negate(%one)
  %b = f32[5,1024]{1,0:T(8,128)} fusion(%a, %vmem, %i), kind=kLoop, calls=%updates
  ROOT %y = (s32[], f32[5,1024]{1,0}) tuple(%i, %b)
}

%condition (x.1: (s32[], f32[5,1024])) -> pred[] {
  %n = s32[] constant(5)
}

ENTRY %main (a.1: f32[5,1024]) -> f32[5,1024] {
  %a.1 = f32[5,1024]{1,0} parameter(0)
  %copied = (f32[5,1024]{1,0}, f32[5,1024]{0,1}, u32[]{:S(2)}) copy-start(%a.1)
  %done = f32[5,1024]{1,0} copy-done(%copied)
  %start = (s32[], f32[5,1024]{1,0}) tuple(%zero, %done)
  ROOT %loop = (s32[], f32[5,1024]{1,0}) while(%start), condition=%condition, body=%body
}
"""


def test_slices_loops_and_memories_by_hand():
    row, stack = 4 * 1024, 5 * 4 * 1024
    sliced, negated, updated = 2 * row, row, row
    assert hbm_bytes(TEXT) == 2 * stack + 5 * (sliced + negated + updated)
    whole = TEXT.replace("dynamic-slice(%p.0, %p.1)", "add(%p.0, %p.0)")
    assert hbm_bytes(whole) - hbm_bytes(TEXT) == 5 * (stack - row)


@pytest.mark.tpu_aot
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is for Linux")
class TestOfTheCompiler:
    """Arrays of 256 MiB, which no core's own memory holds."""

    def moved(self, function, *shapes, dtype=jnp.float32):
        device = tpu_compiler.devices("v5e:2x2")[0]
        arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
        return hbm_bytes(tpu_compiler.compile_for(device, function, *arrays).as_text()) / MIB

    def test_arrays_are_read_and_written(self):
        """A reversed copy is written, and then read by the sum."""
        assert self.moved(lambda x: x + 1, (8192, 8192)) == 2 * 256
        assert self.moved(lambda x: x.T, (8192, 8192)) == 2 * 256
        assert self.moved(lambda x: x + x[::-1], (8192, 8192)) == 5 * 256

    def test_a_loop_over_layers_reads_each_layer_once(self):
        """And keeps the carry, of 64 KiB, in the core."""

        def product(x, weights):
            return jax.lax.scan(lambda y, w: (y @ w, None), x, weights)[0]

        moved = self.moved(product, (8, 4096), (16, 4096, 4096), dtype=jnp.bfloat16)
        assert 512 <= moved < 514
