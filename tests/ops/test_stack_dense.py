"""Each dense kernel of the fused stack alone, interpreted, against the model's equations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from diffussm_jax.ops.stack_tpu import dense
from diffussm_jax.ops.stack_tpu.activations import gelu, gelu_and_slope
from diffussm_jax.ops.stack_tpu.choose import stack_tiling_for
from diffussm_jax.ops.stack_tpu.dense_tiling import BlockShape, DenseTiling, fit, refusal
from tests.ops.dense_reference import (
    LAYER,
    Case,
    apply,
    exact_vjp,
    exactly,
    hidden,
    inputs,
    make_arrays,
    modulated,
    narrowed,
    output,
    statistics,
    widened,
)
from tests.ops.s4d_reference import error

KERNELS = ("up", "down", "gate_back", "hidden_back", "wide_back", "up_back")
TOLERANCE = {"float32": 3e-6, "bfloat16": 1e-2}


CASES = {
    "three_images_of_two_blocks_with_gate": Case(b=3, j=256, gate=True),
    "bfloat16_groups_of_four_with_gate": Case(m=4, gate=True, dtype="bfloat16"),
    "one_direction_on_two_cores": Case(m=1, r=1, b=4, j=256, num_cores=2),
    "rows_in_several_blocks": Case(width=1152),
    "bfloat16_residual": Case(dtype="bfloat16", residual_dtype="bfloat16"),
}
QUICK = "three_images_of_two_blocks_with_gate"


def run(case, name, arguments, tiling=None):
    layer = jnp.array([LAYER], jnp.int32)
    return getattr(dense, name)(layer, *arguments[name], tiling=tiling or case.tiling)


@pytest.fixture(
    params=[pytest.param(x, marks=[] if x == QUICK else [pytest.mark.slow]) for x in CASES],
    scope="module",
)
def case(request):
    return CASES[request.param]


@pytest.fixture(scope="module")
def arrays(case):
    return make_arrays(case)


@pytest.fixture(scope="module")
def arguments(case, arrays):
    return inputs(case, arrays)


def assert_near(case, actual, expected):
    leaves, structure = jax.tree_util.tree_flatten_with_path(expected)
    for (path, y), x in zip(leaves, structure.flatten_up_to(actual)):
        assert x.shape == y.shape, path
        assert error(x, y) < TOLERANCE[case.dtype], jax.tree_util.keystr(path)


def assert_others_untouched(written, before, layer):
    for new, old in zip(written, before):
        others = [n for n in range(len(old)) if n != layer]
        np.testing.assert_array_equal(*(np.asarray(x[jnp.array(others)]) for x in (new, old)))


def test_up(case, arrays, arguments):
    written = run(case, "up", arguments)
    _, h_pre, u_pre = exactly(widened, arrays.p, arrays.x, arrays.modulation)
    layer = [x[LAYER] for x in written]
    assert_near(case, layer, [exactly(statistics, arrays.x), h_pre, u_pre])
    assert_others_untouched(written, arguments["up"][3:], LAYER)


def test_down(case, arrays, arguments):
    new_xs, *written = run(case, "down", arguments)

    def values(p, x, modulation, y):
        i, q = modulated(x, modulation), narrowed(p.w_down, y)
        p1, p2 = apply(p.w1, i), hidden(p.w2, q)
        return [x + output(p, modulation, i, p2), q, p1, p2]

    layer = [new_xs[LAYER + 1], *(x[LAYER] for x in written)]
    assert_near(case, layer, exactly(values, arrays.p, arrays.x, arrays.modulation, arrays.y))
    assert_others_untouched(written, arguments["down"][5:], LAYER)
    assert_others_untouched([new_xs], arguments["down"][:1], LAYER + 1)


def test_gate_back(case, arrays, arguments):
    i = exactly(modulated, arrays.x, arrays.modulation)
    d_p, d_modulation, d_i, d_p2 = exact_vjp(
        output, arrays.dx, arrays.p, arrays.modulation, i, arrays.p2
    )
    gate = d_modulation[:, 2] if case.gate else None
    expected = dense.GateGradients(d_p2, d_i, d_p.w1, d_p2.sum((0, 2)), d_p.w3, gate)
    assert_near(case, run(case, "gate_back", arguments), expected)


def test_hidden_back(case, arrays, arguments):
    d_w, d_q = exact_vjp(hidden, arrays.dp2, arrays.p.w2, arrays.q)
    db_down = d_q.reshape(case.b, case.m, -1, case.j).sum((0, 3))
    assert_near(case, run(case, "hidden_back", arguments), (d_q, d_w.kernel, db_down))


def test_wide_back(case, arrays, arguments):
    d_w, d_y = exact_vjp(narrowed, arrays.dq, arrays.p.w_down, arrays.y)
    assert_near(case, run(case, "wide_back", arguments), (d_y, d_w.kernel))


def test_up_back(case, arrays, arguments):
    def values(p, x, modulation):
        i, _, u_pre = widened(p, x, modulation)
        return x, i, u_pre

    cotangents = arrays.dx, arrays.di, arrays.du
    d_p, d_x, d_modulation = exact_vjp(values, cotangents, arrays.p, arrays.x, arrays.modulation)
    expected = d_x, d_p.w0, d_p.w_up, d_modulation[:, :2]
    assert_near(case, run(case, "up_back", arguments), expected)


def test_gradients_are_rounded_sums():
    """As the parameters are, of which the quick case above has float32 ones."""
    case = Case(b=2, j=256, dtype="bfloat16")
    arrays = make_arrays(case)
    dy, dw_down = run(case, "wide_back", inputs(case, arrays))
    assert dw_down.dtype == jnp.bfloat16
    d_w, d_y = exact_vjp(narrowed, arrays.dq, arrays.p.w_down, arrays.y)
    assert_near(case, (dy, dw_down), (d_y, d_w.kernel))


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_no_two_steps_race(name, capfd):
    """Neither do they read what was not written."""
    case = Case(b=2, j=256, gate=True)
    tiling = DenseTiling(columns=128, interpret=pltpu.InterpretParams(detect_races=True))
    results = run(case, name, inputs(case, make_arrays(case)), tiling)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(results))
    assert "RACE DETECTED" not in capfd.readouterr().out


def test_gelu_is_the_tanh_form():
    """To float32's precision; `jax.nn.gelu` itself loses digits where its tanh is near -1."""
    x = np.linspace(-8, 8, 1001)
    t = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    slope = (1 + t) / 2 + x * (1 - t**2) / 2 * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
    for actual, expected in zip(gelu_and_slope(jnp.asarray(x)), (x * (1 + t) / 2, slope)):
        np.testing.assert_allclose(actual, expected, atol=5e-6)
    np.testing.assert_allclose(
        gelu(jnp.asarray(x)), jax.nn.gelu(jnp.asarray(x)), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("d", [384, 768, 1024, 1152])
@pytest.mark.parametrize("m", [1, 2, 4])
@pytest.mark.parametrize(
    ("kind", "columns"), [("TPU v5 lite", 512), ("TPU v6 lite", 512), ("TPU v5", 128)]
)
def test_every_size_fits(kind, columns, m, d):
    tiling = stack_tiling_for(kind).dense
    assert fit(tiling, BlockShape(d, 1024, m, r=2)).columns >= columns


@pytest.mark.parametrize(
    ("j", "columns"), [(128, 128), (384, 384), (640, 128), (768, 384), (2048, 512), (16384, 512)]
)
def test_columns_divide_an_image(j, columns):
    assert fit(DenseTiling(), BlockShape(1152, j, m=1, r=2)).columns == columns


def test_a_kernel_that_holds_less_takes_more_columns():
    fitted = fit(stack_tiling_for("TPU7x").dense, BlockShape(1152, 512, m=2, r=2))
    names = "up", "down", "gate_back", "hidden_back", "wide_back", "up_back"
    assert [fitted.columns_of(name) for name in names] == [512, 256, 128, 256, 256, 256]
    assert fitted.columns == 128


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"j": 64}, {}, "64 groups of 2 tokens are no multiple of 128"),
        ({"d": 96}, {}, "a width of 96 is no multiple of 128"),
        ({"d": 1152}, {"vmem_bytes": 15 * 2**20}, "dense_gate_back needs .* MiB of VMEM, 15"),
    ],
)
def test_refusals(changes, options, message):
    shape = dataclasses.replace(BlockShape(d=384, j=128, m=2, r=2), **changes)
    tiling = DenseTiling(**options)
    with pytest.raises(ValueError, match=message):
        fit(tiling, shape)
    assert refusal(tiling, shape) in str(pytest.raises(ValueError, fit, tiling, shape).value)
