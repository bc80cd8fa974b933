"""Each dense kernel of the fused stack alone, interpreted, against the model's equations."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from diffussm_jax.models.layers import modulate
from diffussm_jax.ops.stack_tpu import dense
from diffussm_jax.ops.stack_tpu.activations import gelu, gelu_and_slope
from diffussm_jax.ops.stack_tpu.dense_tiling import BlockShape, DenseTiling, fit, refusal
from diffussm_jax.ops.stack_tpu.parameters import (
    DenseParameters,
    Linear,
    backward_layout,
    forward_layout,
)
from tests.ops.s4d_reference import error

WIDTH, LAYERS, LAYER = 32, 2, 1
TOLERANCE = {"float32": 3e-6, "bfloat16": 1e-2}


@dataclasses.dataclass(frozen=True)
class Case:
    m: int = 2
    r: int = 2
    gate: bool = False
    dtype: str = "float32"
    residual_dtype: str = "float32"
    b: int = 1
    j: int = 128

    @property
    def tiling(self):
        return DenseTiling(columns=128, interpret=True)


CASES = {
    "three_images_of_two_blocks": Case(b=3, j=256),
    "bfloat16_groups_of_four_with_gate": Case(m=4, gate=True, dtype="bfloat16"),
    "one_direction_with_gate": Case(m=1, r=1, gate=True, b=2, j=256),
    "bfloat16_residual": Case(dtype="bfloat16", residual_dtype="bfloat16"),
}
SLOW = ("one_direction_with_gate", "bfloat16_residual")


class Arrays(NamedTuple):
    """Inputs of every kernel, channel-major, of a single layer."""

    p: DenseParameters
    modulation: Any
    x: Any
    y: Any
    h_pre: Any
    q: Any
    p1: Any
    p2: Any
    dx: Any
    du: Any
    di: Any
    dp2: Any
    dq: Any


def make_arrays(case) -> Arrays:
    """Random values of the scale that a trained block has, rounded to the case's dtypes."""
    rng = np.random.default_rng(0)
    m, r, d = case.m, case.r, WIDTH

    def normal(*shape, scale=1.0, dtype=case.dtype):
        return jnp.asarray(scale * rng.normal(size=shape), dtype)

    def linear(num_inputs, num_outputs, *members):
        kernel = normal(*members, num_inputs, num_outputs, scale=num_inputs**-0.5)
        return Linear(kernel, normal(*members, num_outputs, scale=0.3))

    layers = DenseParameters(
        w0=linear(d, d),
        w_up=linear(d, m * d),
        w_down=linear(r * d, 2 * d // m, m),
        w1=linear(d, 2 * d),
        w2=linear(2 * d, 2 * d),
        w3=linear(2 * d, d),
    )
    rows = functools.partial(normal, case.b)
    residual = functools.partial(rows, d, case.j, dtype=case.residual_dtype)
    return Arrays(
        p=layers,
        modulation=rows(3 if case.gate else 2, d, scale=0.5),
        x=residual(),
        y=rows(m * r * d, case.j),
        h_pre=rows(d, case.j),
        q=rows(2 * d, case.j),
        p1=rows(2 * d, case.j),
        p2=rows(2 * d, case.j),
        dx=residual(),
        du=rows(m * d, case.j),
        di=rows(d, case.j),
        dp2=rows(2 * d, case.j),
        dq=rows(2 * d, case.j),
    )


def flip(x):
    return jnp.swapaxes(x, 1, 2)


def apply(w, x):
    """A dense layer of x [b rows j]."""
    return jnp.einsum("io,bij->boj", w.kernel, x) + w.bias[:, None]


def modulated(x, modulation):
    return flip(modulate(flip(x), modulation[:, :1], modulation[:, 1:2]))


def widened(p, x, modulation):
    i = modulated(x, modulation)
    h_pre = apply(p.w0, i)
    return i, h_pre, apply(p.w_up, jax.nn.gelu(h_pre))


def narrowed(w, y):
    b, _, j = y.shape
    m = w.kernel.shape[0]
    q = jnp.einsum("mio,bmij->bmoj", w.kernel, y.reshape(b, m, -1, j)) + w.bias[:, :, None]
    return q.reshape(b, -1, j)


def output(p, modulation, i, p2):
    """What the block adds to x."""
    o = apply(p.w3, jax.nn.gelu(apply(p.w1, i)) * jax.nn.gelu(p2))
    return modulation[:, 2, :, None] * o if modulation.shape[1] > 2 else o


def stack(x, num_layers=LAYERS):
    """Layers of noise, and x as the one in question."""
    noise = np.random.default_rng(1).normal(size=(num_layers, *x.shape))
    return jnp.asarray(noise, x.dtype).at[LAYER].set(x)


@pytest.fixture(
    params=[pytest.param(x, marks=[pytest.mark.slow] if x in SLOW else []) for x in CASES],
    scope="module",
)
def case(request):
    return CASES[request.param]


@pytest.fixture(scope="module")
def arrays(case):
    return make_arrays(case)


@pytest.fixture(scope="module")
def exact(arrays):
    """The same values in float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), arrays)


def assert_near(case, actual, expected):
    for path, (x, y) in zip_leaves(actual, expected):
        assert x.shape == y.shape, path
        assert error(x, np.asarray(y)) < TOLERANCE[case.dtype], jax.tree_util.keystr(path)


def zip_leaves(actual, expected):
    leaves, structure = jax.tree_util.tree_flatten_with_path(expected)
    others = structure.flatten_up_to(actual)
    return [(path, (x, y)) for (path, y), x in zip(leaves, others)]


def statistics(x):
    """Mean and 1 / deviation of each column of x [b d j]."""
    x = np.asarray(x, np.float64)
    return jnp.asarray(np.stack([x.mean(1), 1 / np.sqrt(x.var(1) + 1e-6)], 1), jnp.float32)


LAYER_NUMBER = jnp.array([LAYER], jnp.int32)


def test_up(case, arrays, exact):
    weights = forward_layout(arrays.p, case.dtype)
    stacks = [stack(x) for x in (statistics(arrays.x), arrays.h_pre, arrays.du)]
    xs = stack(arrays.x, LAYERS + 1)
    written = run(case, dense.up, xs, arrays.modulation, weights, *stacks)
    _, h_pre, u_pre = widened(exact.p, exact.x, exact.modulation)
    layer = [x[LAYER] for x in written]
    assert_near(case, layer, [statistics(exact.x), h_pre, u_pre])
    assert_others_untouched(written, stacks, LAYER)


def test_down(case, arrays, exact):
    weights = forward_layout(arrays.p, case.dtype)
    stacks = [stack(x) for x in (arrays.q, arrays.p1, arrays.p2)]
    xs, moments = stack(arrays.x, LAYERS + 1), stack(statistics(arrays.x))
    ys = stack(arrays.y)
    new_xs, *written = run(case, dense.down, xs, moments, arrays.modulation, ys, weights, *stacks)
    i = modulated(exact.x, exact.modulation)
    q = narrowed(exact.p.w_down, exact.y)
    p1, p2 = apply(exact.p.w1, i), apply(exact.p.w2, jax.nn.gelu(q))
    next_x = exact.x + output(exact.p, exact.modulation, i, p2)
    layer = [new_xs[LAYER + 1], *(x[LAYER] for x in written)]
    assert_near(case, layer, [next_x, q, p1, p2])
    assert_others_untouched(written, stacks, LAYER)
    assert_others_untouched([new_xs], [xs], LAYER + 1)


def test_gate_back(case, arrays, exact):
    weights = backward_layout(arrays.p, case.dtype)
    i = modulated(exact.x, exact.modulation)
    p1 = apply(exact.p.w1, i)
    stacks = [stack(x) for x in (arrays.x, statistics(arrays.x))]
    gates = [stack(x.astype(case.dtype)) for x in (p1, arrays.p2)]
    gradients = run(case, dense.gate_back, arrays.dx, *stacks, arrays.modulation, *gates, weights)
    _, vjp = jax.vjp(output, exact.p, exact.modulation, i, exact.p2)
    d_p, d_modulation, d_i, d_p2 = vjp(exact.dx)
    gate = d_modulation[:, 2] if case.gate else None
    expected = dense.GateGradients(d_p2, d_i, d_p.w1, d_p2.sum((0, 2)), d_p.w3, gate)
    assert_near(case, gradients, expected)


def test_hidden_back(case, arrays, exact):
    weights = backward_layout(arrays.p, case.dtype)
    gradients = run(case, dense.hidden_back, arrays.dp2, stack(arrays.q), weights)
    _, vjp = jax.vjp(lambda w, q: apply(w, jax.nn.gelu(q)), exact.p.w2, exact.q)
    d_w, d_q = vjp(exact.dp2)
    db_down = d_q.reshape(case.b, case.m, -1, case.j).sum((0, 3))
    assert_near(case, gradients, (d_q, d_w.kernel, db_down))


def test_wide_back(case, arrays, exact):
    weights = backward_layout(arrays.p, case.dtype)
    gradients = run(case, dense.wide_back, stack(arrays.y), arrays.dq, weights)
    _, vjp = jax.vjp(narrowed, exact.p.w_down, exact.y)
    d_w, d_y = vjp(exact.dq)
    assert_near(case, gradients, (d_y, d_w.kernel))


def test_up_back(case, arrays, exact):
    weights = backward_layout(arrays.p, case.dtype)
    _, h_pre, _ = widened(exact.p, exact.x, exact.modulation)
    stacks = [stack(x) for x in (arrays.x, statistics(arrays.x))]
    others = stack(h_pre.astype(case.dtype)), arrays.du, arrays.di
    gradients = run(case, dense.up_back, arrays.dx, *stacks, arrays.modulation, *others, weights)

    def values(p, x, modulation):
        i, _, u_pre = widened(p, x, modulation)
        return i, u_pre

    _, vjp = jax.vjp(values, exact.p, exact.x, exact.modulation)
    d_p, d_x, d_modulation = vjp((exact.di, exact.du))
    expected = (d_x + exact.dx, d_p.w0, d_p.w_up, d_modulation[:, :2])
    assert_near(case, gradients, expected)


def run(case, function, *arguments):
    return function(LAYER_NUMBER, *arguments, tiling=case.tiling)


def assert_others_untouched(written, before, layer):
    for new, old in zip(written, before):
        others = [n for n in range(len(old)) if n != layer]
        np.testing.assert_array_equal(*(np.asarray(x[jnp.array(others)]) for x in (new, old)))


def test_no_two_steps_race(capfd):
    """Neither do they read what was not written."""
    case = Case(b=2, j=256)
    arrays = make_arrays(case)
    tiling = DenseTiling(columns=128, interpret=pltpu.InterpretParams(detect_races=True))
    weights = backward_layout(arrays.p, case.dtype)
    dy, dw_down = dense.wide_back(LAYER_NUMBER, stack(arrays.y), arrays.dq, weights, tiling=tiling)
    assert np.isfinite(dy).all()
    assert np.isfinite(dw_down).all()
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
def test_every_size_fits_v5e(d, m):
    columns = fit(DenseTiling(), BlockShape(d, 1024, m, r=2)).columns
    assert columns >= (512 if m < 4 else 256)


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
