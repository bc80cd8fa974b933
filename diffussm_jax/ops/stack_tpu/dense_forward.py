"""Bodies of the two dense kernels of the forward pass, for some columns of an image.

By the equations of docs/architecture.md, with a feature for each row and a group for each column:
    up      i = LayerNorm(x) (1 + scale) + shift
            h = W0 i + b0                           kept before its GELU, as h_pre
            u = W_up gelu(h) + b_up                 u_pre, m*d rows, those of token k from k*d
            S4D reads gelu(u) and writes y          m*r*d rows, those of token k from k*r*d
    down    q[k] = W_down[k] y[k] + b_down[k]       2*d rows, those of token k from k*2*d/m
            p1 = W1 i + b1,  p2 = W2 gelu(q) + b2
            o = W3 (gelu(p1) gelu(p2)) + b3
            x' = x + o,  or x + gate o
Kernels W are [in out], as they are gathered and as the backward pass takes them, or transposed,
which is a little faster. The layers run over blocks of rows of their results, and what is done with
a block runs on the vector unit while the matrix unit has the next one.

The arguments are Refs: what is read, then what is written, and by name the working memory.
"""

import math

import jax.numpy as jnp

from diffussm_jax.ops.pallas_tpu.block import LANES, dot
from diffussm_jax.ops.pallas_tpu.kernels import NN, TN
from diffussm_jax.ops.stack_tpu.activations import GATE, gelu, measure, modulate, times
from diffussm_jax.ops.stack_tpu.parameters import Linear, TransposedLinear
from diffussm_jax.ops.stack_tpu.rows import PRODUCT_SIZE, over_rows, parts


def up(
    x, modulation, w0: Linear, w_up: Linear, statistics, h_pre, u_pre, *, i, h, unroll: bool
) -> None:
    """Write LayerNorm's statistics, h_pre and u_pre."""
    measure(x, statistics, unroll=unroll)
    modulate(x, statistics, modulation, i, unroll=unroll)

    def hidden(rows):
        p = _apply(w0, rows, i)
        h_pre[rows] = p
        h[rows] = gelu(p).astype(h.dtype)

    def wide(rows):
        u_pre[rows] = _apply(w_up, rows, h)

    over_rows(h_pre, hidden, unroll=unroll)
    over_rows(u_pre, wide, unroll=unroll)


def down(
    x,
    statistics,
    modulation,
    y,
    w_down: Linear,
    w1: Linear,
    w2: Linear,
    w3: Linear,
    next_x,
    q,
    p1,
    p2,
    *,
    i,
    gelu_q,
    z,
    unroll: bool,
) -> None:
    """Write x', q, p1 and p2."""
    modulate(x, statistics, modulation, i, unroll=unroll)
    m = w_down.kernel.shape[0]
    for k, blocks in enumerate(zip(parts(y, m), parts(q, m), parts(gelu_q, m))):
        w = w_down._replace(kernel=w_down.kernel.at[k], bias=w_down.bias.at[k])
        _narrow(w, *blocks, unroll=unroll)

    def gated(rows):
        p1_rows, p2_rows = _apply(w1, rows, i), _apply(w2, rows, gelu_q)
        p1[rows], p2[rows] = p1_rows, p2_rows
        z[rows] = times(gelu(p1_rows).astype(z.dtype), gelu(p2_rows).astype(z.dtype))

    def residual(rows):
        o = _apply(w3, rows, z)
        if modulation.shape[0] > GATE:
            o = times(o, modulation[GATE, rows])
        next_x[rows] = (x[rows].astype(jnp.float32) + o.astype(jnp.float32)).astype(next_x.dtype)

    over_rows(p1, gated, unroll=unroll)
    over_rows(x, residual, unroll=unroll)


def _narrow(w: Linear, y, q, gelu_q, *, unroll: bool) -> None:
    """Apply W_down[k]."""

    def narrow(rows):
        p = _apply(w, rows, y)
        q[rows] = p
        gelu_q[rows] = gelu(p).astype(gelu_q.dtype)

    # A block of W's columns is whole registers, or all of them.
    most = math.prod(q.shape) if q.shape[0] % LANES else PRODUCT_SIZE
    over_rows(q, narrow, most=most, unroll=unroll)


def _apply(w: Linear, rows, x):
    """Some rows of a layer's result, in the dtype of its input x."""
    if isinstance(w, TransposedLinear):
        product = dot(w.kernel[rows], x[...], NN)
    else:
        product = dot(w.kernel[:, rows], x[...], TN)
    return (product + w.bias[rows, :1]).astype(x.dtype)
