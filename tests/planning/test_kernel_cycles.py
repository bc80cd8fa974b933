"""Kernels found in a program's text, compiled alone by the real TPU compiler, and counted."""

import functools
import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from diffussm_jax.ops.stack_tpu import dense
from diffussm_jax.ops.stack_tpu.dense_tiling import DenseTiling
from diffussm_jax.planning import kernel_cycles, tpu_compiler
from diffussm_jax.planning.bundles import KernelCost
from diffussm_jax.planning.kernel_calls import KernelCall, num_bytes, read_call

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is for Linux"
)
TOPOLOGY = "v5e:2x2"
STEPS, ROWS, LANES = 4, 8, 128
WIDTH, GROUPS = 384, 512  # of a dense kernel whose loop over rows has two rounds
COLORS = "input_memory_space_colors"
CONFIG = {"custom_call_config": {"body": "TUzvUg==", "needs_layout_passes": True, COLORS: []}}
LINE = (
    "  %jvp_toy_.3 = (bf16[4,8,128]{2,1,0:T(8,128)(2,1)}, f32[128]{0:T(128)S(1)}) custom-call("
    '%copy.1, %x.1), custom_call_target="tpu_custom_call", operand_layout_constraints={s32[1]{0}, '
    "bf16[4,8,128]{2,1,0}}, output_to_operand_aliasing={{0}: (1, {})}, frontend_attributes={"
    'kernel_metadata={}}, metadata={op_name="jit(f)/jvp()/toy/pallas_call" stack_frame_id=3}, '
    f"backend_config={json.dumps(CONFIG | {'retry_config': {}})}"
)


def test_a_call_is_read_from_its_line():
    call = read_call(LINE)
    assert call == KernelCall(
        name="toy",
        config=json.dumps(CONFIG),
        operands="s32[1], bf16[4,8,128]",
        results="bf16[4,8,128], f32[128]",
        aliases="{0}: (1, {})",
    )
    assert call.num_bytes == 4 + 2 * 2 * 4 * 8 * 128 + 4 * 128
    assert read_call(LINE.replace("tpu_custom_call", "Sharding")) is None
    assert num_bytes("pred[], u8[3]") == 4
    with pytest.raises(ValueError, match="cannot be read: %jvp_toy_.3 = "):
        read_call(LINE.replace("operand_layout_constraints", "layouts"))


def test_a_call_is_the_same_wherever_the_program_placed_its_arrays():
    color = {"operand_index": "0", "color": "1", "shape_index": []}
    line = LINE.replace(f'"{COLORS}": []', f'"{COLORS}": {json.dumps([color])}')
    assert line != LINE
    assert read_call(line) == read_call(LINE)


def test_a_call_whose_metadata_breaks_its_line_is_counted():
    metadata = 'kernel_metadata={\n"xprof_metadata":"{\\"block_q\\": 1024}"\n}'
    text = f"ENTRY %main (x: s32[1]) -> f32[128] {{\n{LINE}\n}}"
    broken = text.replace("kernel_metadata={}", metadata)
    assert broken != text
    assert tpu_compiler.cycles(broken) == tpu_compiler.cycles(text)


@needs_libtpu
@pytest.mark.tpu_aot
def test_what_was_counted_is_kept(tmp_path, monkeypatch, caplog):
    """Until the kernel, the chip or the compiler is another; damage and a full disk cost time."""
    compiled = []

    def compile_(topology, call):
        compiled.append((topology, call.name))
        return KernelCost(7, 8, 9)

    monkeypatch.setattr(kernel_cycles, "_compile", compile_)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first, other = read_call(LINE), read_call(LINE.replace("TUzvUg==", "TUzvUw=="))
    assert kernel_cycles.kernel_costs(TOPOLOGY, [first]) == {first: KernelCost(7, 8, 9)}
    assert kernel_cycles.kernel_costs(TOPOLOGY, [first]) == {first: KernelCost(7, 8, 9)}
    assert len(compiled) == 1
    kernel_cycles.kernel_costs(TOPOLOGY, [first, other])
    kernel_cycles.kernel_costs("v6e:2x2", [first])
    assert len(compiled) == 3
    monkeypatch.setattr(kernel_cycles, "version", lambda _: "another")
    kernel_cycles.kernel_costs(TOPOLOGY, [first])
    for path in tmp_path.rglob("*.json"):
        path.write_text("{")
    assert kernel_cycles.kernel_costs(TOPOLOGY, [first]) == {first: KernelCost(7, 8, 9)}
    assert len(compiled) == 5
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert kernel_cycles.kernel_costs(TOPOLOGY, [first]) == {first: KernelCost(7, 8, 9)}
    assert "not kept" in caplog.text


def looped(num_rounds, *, at_first_step=False):
    """A kernel that takes logarithms, of 8 rows in each round of a loop, and its argument."""

    def kernel(x, y):
        def body(n, _):
            rows = pl.ds(pl.multiple_of(n * ROWS, ROWS), ROWS)
            y[rows] = jnp.log(x[rows])

        def run():
            jax.lax.fori_loop(0, num_rounds, body, None)

        pl.when(pl.program_id(0) == 0)(run) if at_first_step else run()

    block = pl.BlockSpec((None, num_rounds * ROWS, LANES), lambda i: (i, 0, 0))
    shape = jax.ShapeDtypeStruct((STEPS, num_rounds * ROWS, LANES), jnp.float32)
    return pl.pallas_call(
        kernel, grid=(STEPS,), in_specs=[block], out_specs=block, out_shape=shape, name="toy"
    ), [shape]


def hidden_back(*, unroll):
    """A dense kernel whose loop has two rounds, or is written out, and its arguments."""
    d, j, b = WIDTH, GROUPS, 2
    shape = jax.ShapeDtypeStruct
    wide = shape((b, 2 * d, j), jnp.bfloat16)
    stack, layer = shape((3, *wide.shape), wide.dtype), shape((1,), jnp.int32)
    w2, w_down = shape((2 * d, 2 * d), jnp.bfloat16), shape((2, 2 * d, d), jnp.bfloat16)

    def run(layer, dp2, q, w2, w_down):
        linear = functools.partial(dense.Linear, bias=None)
        weights = dense.DenseParameters(*[None] * 6)._replace(
            w2=linear(kernel=w2), w_down=linear(kernel=w_down)
        )
        tiling = DenseTiling(columns=j, unroll=unroll)
        return dense.hidden_back(layer, dp2, q, weights, tiling=tiling)

    return run, [layer, wide, stack, w2, w_down]


@pytest.fixture(scope="module")
def costs(tmp_path_factory):
    """The costs of all kernels that the tests below compare."""
    kernels = {
        "100 rounds": looped(100),
        "200 rounds": looped(200),
        "200 at first": looped(200, at_first_step=True),
        "rolled": hidden_back(unroll=False),
        "unrolled": hidden_back(unroll=True),
    }
    device, calls = tpu_compiler.devices(TOPOLOGY)[0], {}
    for name, (function, arguments) in kernels.items():
        text = tpu_compiler.compile_for(device, function, *arguments).as_text()
        ((calls[name], times),) = tpu_compiler.cycles(text).kernels.items()
        assert times == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        counted = kernel_cycles.kernel_costs(TOPOLOGY, calls.values())
    return {name: counted[call] for name, call in calls.items()}


@pytest.mark.slow
@pytest.mark.tpu_aot
@needs_libtpu
class TestOfTheCompiler:
    def test_a_loop_costs_its_rounds(self, costs):
        assert 1.9 < costs["200 rounds"].cycles / costs["100 rounds"].cycles < 2

    def test_what_the_first_step_alone_does_is_counted_once(self, costs):
        assert STEPS * 0.9 < costs["200 rounds"].cycles / costs["200 at first"].cycles < STEPS

    def test_a_loop_costs_nearly_what_it_does_written_out(self, costs):
        """A little more, since its rounds do not overlap."""
        assert 1 < costs["rolled"].cycles / costs["unrolled"].cycles < 1.1

    def test_products_take_the_matrix_units_time_and_little_more(self, costs):
        """For two images, two products of 65,536 multiply-adds a cycle."""
        ideal = 2 * 2 * (2 * WIDTH) ** 2 * GROUPS / 65536
        assert ideal < costs["unrolled"].cycles < costs["rolled"].cycles < 1.3 * ideal

    def test_a_block_of_each_array_is_waited_for(self, costs):
        assert costs["100 rounds"].block_bytes == 2 * 100 * ROWS * LANES * 4
        assert costs["100 rounds"].hbm_bytes == STEPS * costs["100 rounds"].block_bytes
        wide, weights, sums = 768 * GROUPS * 2, 768 * 768 * (2 + 2), 768 * LANES * 4
        assert costs["rolled"].block_bytes == 3 * wide + weights + sums
        assert costs["rolled"].hbm_bytes == 2 * 3 * wide + weights + sums
