"""Cycles read from libtpu's text of a kernel: small texts in its form, counted by hand."""

import pytest

from diffussm_jax.planning.bundles import KernelCost, kernel_cost

# A grid of 4 x 3 steps, whose first step runs a loop of 5 rounds. Bundles 10 to 20 belong to the
# loop over the grid, 12 to 18 to the first step alone, 14 to 16 to its inner loop.
ORIGINAL = """\
  %s0 = inlined_call_operand.hbm [shape: bf16[4,128]] /* input window allocation for operator \
input 0. The window shape is bf16[1,128], while the full shape is bf16[4,128]. */
  %s1 = inlined_call_operand.hbm [shape: f32[8,128]] /* output window allocation for operator \
output 0. The window shape is f32[8,128], while the full shape is f32[8,128]. */
  #allocation2 [shape = 'u8[512]{0}', tag = 'input window allocation for operator input 0. The \
window shape is bf16[1,128], while the full shape is bf16[4,128]. The u8 shape is that in VMEM. \
This allocation has 2 buffering levels.']
  #allocation4 [shape = 'u8[4096]{0}', tag = 'output window allocation for operator output 0. The \
window shape is f32[8,128], while the full shape is f32[8,128]. The u8 shape is that in VMEM. \
This allocation has 2 buffering levels.']
    $region3: #{kernel} parent=1 // loop_header
      %s20 = sphi 0, %s22 /* iteration index, stage = 0 */
      %s52 = sphi 0, %s50 /* iteration index, stage = 1 iter bound = 0 */
      %s53 = sphi 0, %s51 /* iteration index, stage = 1 iter bound = 1 */
iteration_bounds: (4, 3)
        %p814 = scmp.eq.s32.totalorder %s52, 0
        %p815 = scmp.eq.s32.totalorder %s53, 0
        %p816 = pnand %p814, %p815
        $region46: #{kernel} parent=31 // pred_check_branch
          %339 = sbr.rel (%p816) target = $region48
        $region47: #{kernel} parent=31 // pred_region
"""
SCHEDULED = """\
$region0: #{kernel}
  // region range: [0, 23)
  loop: start=0, step=1, limit=14
  $region171: #{kernel} parent=1 // loop_pre_header
    // region range: [4, 10)
  $region176: #{kernel} parent=1 // loop_body
    // region range: [10, 19)
    $region46: #{kernel} parent=176 // pred_check_branch
      // region range: [10, 12)
      %339 = sbr.rel (%p816_p1) target bundleno = 18 (0x12), region = 48
    $region47: #{kernel} parent=176 // pred_region
      // region range: [10, 18)
      loop: start=2, step=2, limit=12
      $region143: #{kernel} parent=47 // loop_body
        // region range: [14, 16)
      $region51: #{kernel} parent=47 // loop_header_branch
        // region range: [14, 16)
        %344 = sbr.rel (!%p342_p5) target bundleno = 14 (0xe), region = 143
      $region142: #{kernel} parent=47 // loop_exit
        // region range: [14, 16)
  $region3: #{kernel} parent=1 // loop_header
    // region range: [18, 19)
  $region4: #{kernel} parent=1 // loop_header_branch
    // region range: [18, 20)
    %27 = sbr.rel (!%p25_p12) target bundleno = 10 (0xa), region = 176
"""


def test_loops_and_conditions_say_how_often_a_bundle_runs():
    once, each_step, first_step = 10 + 3, 12 * (2 + 2), 4 + 5 * 2
    blocks = 128 * 2 + 8 * 128 * 4
    cost = kernel_cost(ORIGINAL, SCHEDULED)
    moved = 12 * 128 * 2 + 8 * 128 * 4  # the second array's only block stays
    assert cost == KernelCost(once + each_step + first_step, moved, blocks)


@pytest.mark.parametrize(
    ("condition", "steps"),
    [
        ("%p816 = pand %p814, %p815", 11),  # the branch jumps over the region
        ("%p816 = pneg %p814", 3),
        ("%p816 = scmp.ge.s32.totalorder %s53, 2", 8),
        ("%p816 = scmp.lt.s32.totalorder %s99, 2", 12),  # of something that is not known
        ("%p816 = scmp.ne.s32.totalorder %s20, 0", 12),  # a round is no step
    ],
)
def test_a_region_runs_in_the_steps_that_its_condition_takes(condition, steps):
    original = ORIGINAL.replace("%p816 = pnand %p814, %p815", condition)
    cost = kernel_cost(original, SCHEDULED)
    assert cost.cycles == 10 + 3 + 12 * (2 + 2) + steps * (4 + 5 * 2)


def test_a_loop_that_ends_when_it_likes_is_refused():
    scheduled = SCHEDULED.replace("loop: start=2, step=2, limit=12", "// DoWhile loop")
    with pytest.raises(ValueError, match="a loop without bounds: region 143"):
        kernel_cost(ORIGINAL, scheduled)


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="no loop over the grid"):
        kernel_cost(ORIGINAL, SCHEDULED.replace("$region3: ", "$region5: "))
    with pytest.raises(ValueError, match="another order"):
        kernel_cost(ORIGINAL, SCHEDULED.replace("bundleno = 14 ", "bundleno = 17 "))
    with pytest.raises(ValueError, match="no bundles"):
        kernel_cost(ORIGINAL, "")
