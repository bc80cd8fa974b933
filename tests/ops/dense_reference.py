"""Inputs for the dense kernels of the fused stack, and the model's equations in float64."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffussm_jax.ops.stack_tpu.dense_tiling import DenseTiling
from diffussm_jax.ops.stack_tpu.parameters import (
    DenseParameters,
    Linear,
    backward_layout,
    forward_layout,
)

LAYERS, LAYER = 2, 1


@dataclasses.dataclass(frozen=True)
class Case:
    m: int = 2
    r: int = 2
    gate: bool = False
    dtype: str = "float32"
    residual_dtype: str = "float32"
    b: int = 1
    j: int = 128
    width: int = 32
    num_cores: int = 1

    @property
    def tiling(self):
        return DenseTiling(columns=128, num_cores=self.num_cores, interpret=True)


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
    m, r, d = case.m, case.r, case.width

    def normal(*shape, scale=1.0, dtype=case.dtype):
        return jnp.asarray(scale * rng.normal(size=shape), dtype)

    def linear(num_inputs, num_outputs, *members):
        kernel = normal(*members, num_inputs, num_outputs, scale=num_inputs**-0.5)
        return Linear(kernel, normal(*members, num_outputs, scale=0.3))

    p = DenseParameters(
        w0=linear(d, d),
        w_up=linear(d, m * d),
        w_down=linear(r * d, 2 * d // m, m),
        w1=linear(d, 2 * d),
        w2=linear(2 * d, 2 * d),
        w3=linear(2 * d, d),
    )
    rows = functools.partial(normal, case.b)
    residual = functools.partial(rows, d, case.j, dtype=case.residual_dtype)
    x, modulation = residual(), rows(3 if case.gate else 2, d, scale=0.5)
    i = exactly(modulated, x, modulation)
    return Arrays(
        p=p,
        modulation=modulation,
        x=x,
        y=rows(m * r * d, case.j),
        h_pre=jnp.asarray(exactly(apply, p.w0, i), case.dtype),
        q=rows(2 * d, case.j),
        p1=jnp.asarray(exactly(apply, p.w1, i), case.dtype),
        p2=rows(2 * d, case.j),
        dx=residual(),
        du=rows(m * d, case.j),
        di=rows(d, case.j),
        dp2=rows(2 * d, case.j),
        dq=rows(2 * d, case.j),
    )


def exactly(function, *arguments):
    """The value of a function, computed in float64."""
    with jax.enable_x64():
        return jax.tree.map(np.asarray, jax.jit(function)(*in_float64(arguments)))


def exact_vjp(function, cotangents, *arguments):
    """The gradients of a function, computed in float64."""
    with jax.enable_x64():
        vjp = jax.jit(lambda arguments, cotangents: jax.vjp(function, *arguments)[1](cotangents))
        return jax.tree.map(np.asarray, vjp(*in_float64((arguments, cotangents))))


def in_float64(tree):
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), tree)


def apply(w, x):
    """A dense layer of x [b rows j]."""
    return jnp.einsum("io,bij->boj", w.kernel, x) + w.bias[:, None]


def statistics(x):
    """Mean and 1 / deviation of each column of x [b d j]."""
    return jnp.stack([x.mean(1), 1 / jnp.sqrt(x.var(1) + 1e-6)], axis=1)


def modulated(x, modulation):
    mean, inverse_deviation = jnp.split(statistics(x), 2, axis=1)
    n = (x - mean) * inverse_deviation
    return n * (1 + modulation[:, 1, :, None]) + modulation[:, 0, :, None]


def widened(p, x, modulation):
    i = modulated(x, modulation)
    h_pre = apply(p.w0, i)
    return i, h_pre, apply(p.w_up, jax.nn.gelu(h_pre))


def narrowed(w, y):
    b, _, j = y.shape
    m = w.kernel.shape[0]
    q = jnp.einsum("mio,bmij->bmoj", w.kernel, y.reshape(b, m, -1, j)) + w.bias[:, :, None]
    return q.reshape(b, -1, j)


def hidden(w, q):
    return apply(w, jax.nn.gelu(q))


def output(p, modulation, i, p2):
    """What the block adds to x."""
    o = apply(p.w3, jax.nn.gelu(apply(p.w1, i)) * jax.nn.gelu(p2))
    return modulation[:, 2, :, None] * o if modulation.shape[1] > 2 else o


def stack(x, num_layers=LAYERS):
    """Layers of noise, and x as the one in question."""
    noise = np.random.default_rng(1).normal(size=(num_layers, *x.shape))
    return jnp.asarray(noise, x.dtype).at[LAYER].set(x)


def inputs(case, arrays) -> dict[str, tuple]:
    """The arguments of each kernel but the layer's number."""
    p, modulation = arrays.p, arrays.modulation
    forward, backward = forward_layout(p, case.dtype), backward_layout(p, case.dtype)
    moments = stack(jnp.asarray(exactly(statistics, arrays.x), jnp.float32))
    read = stack(arrays.x), moments, modulation
    written = [stack(x) for x in (arrays.q, arrays.p1, arrays.p2)]
    xs, hidden_rows, us = stack(arrays.x, LAYERS + 1), stack(arrays.h_pre), stack(arrays.du)
    ys, qs, p1s, p2s = (stack(x) for x in (arrays.y, arrays.q, arrays.p1, arrays.p2))
    return {
        "up": (xs, modulation, forward, moments, hidden_rows, us),
        "down": (xs, moments, modulation, ys, forward, *written),
        "gate_back": (arrays.dx, *read, p1s, p2s, backward),
        "hidden_back": (arrays.dp2, qs, backward),
        "wide_back": (ys, arrays.dq, backward),
        "up_back": (arrays.dx, *read, hidden_rows, arrays.du, arrays.di, backward),
    }
