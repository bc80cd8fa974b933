"""Bodies of the four dense kernels of the backward pass, for some columns of an image.

A d before a name is the gradient of it, and dx' that of the block's result x'; `dense_forward` has
the equations. What was not kept, the GELUs and i, is formed again beside the products.
    gate_back    do = dx', or gate dx'
                 dz = W3 do,  dW3 = z do^T,  db3 = sum_j do,  dgate = sum_j dx' o
                 dp1 = dz gelu(p2) gelu'(p1),  dp2 = dz gelu(p1) gelu'(p2)
                 di = W1 dp1,  dW1 = i dp1^T
    hidden_back  dq = (W2 dp2) gelu'(q),  dW2 = gelu(q) dp2^T
    wide_back    dy[k] = W_down[k] dq[k],  dW_down[k] = y[k] dq[k]^T
                 S4D turns dy into du, the gradient of u_pre
    up_back      dh = (W_up du) gelu'(h_pre),  dW_up = gelu(h_pre) du^T
                 di + W0 dh gives dshift, dscale and, through LayerNorm, dx
                 dW0 = i dh^T
Gradients of parameters are float32 sums that stay in VMEM while the grid goes over the images of a
core, and those of a modulation while it goes over the columns of one image. `dense_call` rounds the
sums of the first kind and adds up those of the cores.
"""

import functools

import jax.numpy as jnp
from jax.experimental import pallas as pl

from diffussm_jax.ops.pallas_tpu.block import dot
from diffussm_jax.ops.pallas_tpu.kernels import NN, NT
from diffussm_jax.ops.stack_tpu.activations import (
    INVERSE_DEVIATION,
    SCALE,
    SHIFT,
    gelu_and_slope,
    modulate,
    normalized,
    times,
)
from diffussm_jax.ops.stack_tpu.dense_call import BLOCKS, IMAGES
from diffussm_jax.ops.stack_tpu.parameters import Linear
from diffussm_jax.ops.stack_tpu.rows import (
    VECTOR_SIZE,
    fold,
    fold_lanes,
    over_rows,
    parts,
    sum_lanes,
    sum_rows,
)


def gate_back(
    dx,
    x,
    statistics,
    modulation,
    gate,
    p1,
    p2,
    w1,
    w3,
    dp2,
    di,
    dw1: Linear,
    db2,
    dw3,
    dx_sums,
    d_gate,
    *,
    i,
    z,
    dp1,
    rounded_dx=None,
    unroll: bool,
) -> None:
    """Go back through W3, the product of the two gates, and W1.

    The gate of the modulation comes as a row [1 d], or is None, as `d_gate` then is. `dx_sums` and
    `d_gate` [1 d] are sum_j dx' and sum_j dx' (o - b3): with b3, they give db3 and dgate.
    """
    _zero_at_first_step(dw1.kernel, dw1.bias, db2, dw3)
    _zero_at_first_columns(*([dx_sums] if gate is None else [dx_sums, d_gate]))
    modulate(x, statistics, modulation, i, unroll=unroll)
    product_dx = _rounded(dx, rounded_dx, unroll=unroll)

    def gates(rows):
        gelu_p1, slope1 = gelu_and_slope(p1[rows])
        gelu_p2, slope2 = gelu_and_slope(p2[rows])
        gated_w3 = w3[rows] if gate is None else times(w3[rows], gate[...])
        dz = dot(gated_w3, product_dx[...], NN)
        z[rows] = (gelu_p1 * gelu_p2).astype(z.dtype)
        dp1[rows] = (dz * gelu_p2 * slope1).astype(dp1.dtype)
        dp2[rows] = (dz * gelu_p1 * slope2).astype(dp2.dtype)
        dw1.bias[rows] += fold_lanes(dp1[rows])
        db2[rows] += fold_lanes(dp2[rows])
        ungated = dot(z[rows], product_dx[...], NT)
        if gate is None:
            dw3[rows] += ungated
        else:
            dw3[rows] += ungated * gate[...].astype(jnp.float32)
            d_gate[...] += sum_rows(ungated * w3[rows].astype(jnp.float32))

    def gated(rows):
        di[rows] = dot(w1[rows], dp1[...], NN).astype(di.dtype)
        dw1.kernel[rows] += dot(i[rows], dp1[...], NT)
        dx_sums[:, rows] += sum_lanes(dx[rows])

    over_rows(dp2, gates, unroll=unroll)
    over_rows(di, gated, unroll=unroll)


def hidden_back(dp2, q, w2, dq, dw2, db_down, *, gelu_q, unroll: bool) -> None:
    """Go back through W2 and the GELU of q; `db_down` has the rows of q."""
    _zero_at_first_step(dw2, db_down)

    def hidden(rows):
        gelu_rows, slope = gelu_and_slope(q[rows])
        gelu_q[rows] = gelu_rows.astype(gelu_q.dtype)
        dq[rows] = (dot(w2[rows], dp2[...], NN) * slope).astype(dq.dtype)
        db_down[rows] += fold_lanes(dq[rows])
        dw2[rows] += dot(gelu_q[rows], dp2[...], NT)

    over_rows(dq, hidden, unroll=unroll)


def wide_back(y, dq, w_down, dy, dw_down, *, unroll: bool) -> None:
    """Go back through W_down, one k after the other."""
    m = w_down.shape[0]
    _zero_at_first_step(dw_down)
    for k, blocks in enumerate(zip(parts(y, m), parts(dq, m), parts(dy, m))):
        _wide_back(*blocks, w_down.at[k], dw_down.at[k], unroll=unroll)


def _wide_back(y, dq, dy, w_down, dw_down, *, unroll: bool) -> None:
    def wide(rows):
        dy[rows] = dot(w_down[rows], dq[...], NN).astype(dy.dtype)
        dw_down[rows] += dot(y[rows], dq[...], NT)

    over_rows(y, wide, unroll=unroll)


def up_back(
    dx,
    x,
    statistics,
    modulation,
    h_pre,
    du,
    di,
    w0,
    w_up,
    previous_dx,
    dw0: Linear,
    dw_up: Linear,
    d_modulation,
    *,
    i,
    gelu_h,
    dh,
    dn,
    means,
    unroll: bool,
) -> None:
    """Go back through W_up, W0, modulation and LayerNorm.

    `d_modulation` is [2 d], of shift and scale. LayerNorm's result n has the gradient dn, and
        dx = dx' + (dn - mean(dn) - n mean(n dn)) / deviation,
    whose means are sums over rows, gathered in eight rows each.
    """
    _zero_at_first_step(dw0.kernel, dw0.bias, dw_up.kernel, dw_up.bias)
    _zero_at_first_columns(d_modulation)
    modulate(x, statistics, modulation, i, unroll=unroll)
    means[...] = jnp.zeros(means.shape, means.dtype)

    def hidden(rows):
        gelu_rows, slope = gelu_and_slope(h_pre[rows])
        gelu_h[rows] = gelu_rows.astype(gelu_h.dtype)
        dh[rows] = (dot(w_up[rows], du[...], NN) * slope).astype(dh.dtype)
        dw0.bias[rows] += fold_lanes(dh[rows])
        dw_up.kernel[rows] += dot(gelu_h[rows], du[...], NT)

    def modulated(rows):
        dw0.kernel[rows] += dot(i[rows], dh[...], NT)
        d_i = dot(w0[rows], dh[...], NN) + di[rows].astype(jnp.float32)
        n = normalized(x[rows], statistics)
        d_modulation[SHIFT : SHIFT + 1, rows] += sum_lanes(d_i)
        d_modulation[SCALE : SCALE + 1, rows] += sum_lanes(d_i * n)
        d_n = d_i * (1 + modulation[SCALE, rows]).astype(jnp.float32)
        dn[rows] = d_n
        means[0] += fold(d_n) / x.shape[0]
        means[1] += fold(d_n * n) / x.shape[0]

    def bias(rows):
        dw_up.bias[rows] += fold_lanes(du[rows])

    over_rows(x, hidden, unroll=unroll)
    over_rows(x, modulated, unroll=unroll)
    over_rows(du, bias, unroll=unroll)
    inverse_deviation = statistics[INVERSE_DEVIATION : INVERSE_DEVIATION + 1]
    mean, mean_n = sum_rows(means[0]), sum_rows(means[1])

    def last(rows):
        centred = dn[rows] - mean - normalized(x[rows], statistics) * mean_n
        new = dx[rows].astype(jnp.float32) + inverse_deviation * centred
        previous_dx[rows] = new.astype(previous_dx.dtype)

    over_rows(x, last, most=VECTOR_SIZE, unroll=unroll)


def _rounded(x, memory, *, unroll: bool):
    """x as an operand of products: itself, or a copy of it in `memory` of their dtype."""
    if memory is None:
        return x

    def body(rows):
        memory[rows] = x[rows].astype(memory.dtype)

    over_rows(x, body, most=VECTOR_SIZE, unroll=unroll)
    return memory


def _zero_at_first_step(*refs) -> None:
    """Begin the sums over a core's grid, in loops: written out they would be long programs."""

    @pl.when((pl.program_id(IMAGES) == 0) & (pl.program_id(BLOCKS) == 0))
    def _():
        for ref in refs:
            over_rows(ref, functools.partial(_zero, ref), most=VECTOR_SIZE, unroll=False)


def _zero(ref, rows) -> None:
    ref[..., rows, :] = jnp.zeros((*ref.shape[:-2], rows.size, ref.shape[-1]), ref.dtype)


def _zero_at_first_columns(*refs) -> None:
    """Begin the sums over the columns of an image."""

    @pl.when(pl.program_id(BLOCKS) == 0)
    def _():
        for ref in refs:
            ref[...] = jnp.zeros(ref.shape, ref.dtype)
