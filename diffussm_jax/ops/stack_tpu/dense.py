"""The six dense kernels as functions of one layer of the stacks.

Activations are channel-major, `[L b rows j]` over layers or `[b rows j]`; a kernel reads and writes
its layer of a stack in place, since XLA would copy what goes into and comes out of a stack.
`dense_forward` and `dense_backward` have the equations and the kernels' bodies.

In all functions:
    layer        its number, [1]
    xs           x of each layer, [L+1 b d j]
    modulation   shift, scale and, where the model has it, gate of each image, [b n d]
    weights      the layer's: for `up` and `down` as `parameters.forward_layout` or
                 `transposed` gives them, else in the dtype of the products, which their gradients
                 have too
    tiling       how the call is cut; its columns divide j
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from diffussm_jax.ops.pallas_tpu.block import LANES, SUBLANES
from diffussm_jax.ops.stack_tpu import dense_backward, dense_forward
from diffussm_jax.ops.stack_tpu.activations import GATE
from diffussm_jax.ops.stack_tpu.dense_call import NOTHING, Grid, call
from diffussm_jax.ops.stack_tpu.dense_tiling import DenseTiling
from diffussm_jax.ops.stack_tpu.parameters import DenseParameters, Linear

Layer = Int32[Array, "1"]
Stack = Float[Array, "_ b _ j"]
Activation = Float[Array, "b _ j"]
Modulation = Float[Array, "b n d"]
Shape = jax.ShapeDtypeStruct


def up(
    layer: Layer,
    xs: Stack,
    modulation: Modulation,
    weights: DenseParameters,
    statistics: Stack,
    h_pre: Stack,
    u_pre: Stack,
    *,
    tiling: DenseTiling,
    all_layers: bool = False,
) -> tuple[Stack, Stack, Stack]:
    """Widen x; return the stacks of LayerNorm's statistics (2 rows, float32), h_pre and u_pre.

    `weights` are those of all layers, with a leading axis, if `all_layers` says so.
    """
    grid, dtype = _grid("up", xs, tiling), h_pre.dtype
    complete = grid.complete_of_layer if all_layers else grid.complete
    d = xs.shape[2]
    return call(
        dense_forward.up,
        layer,
        grid,
        operands=(
            grid.stack(xs),
            grid.image(modulation[..., None]),
            complete(weights.w0),
            complete(weights.w_up),
        ),
        results=(grid.stack(statistics), grid.stack(h_pre), grid.stack(u_pre)),
        memory={name: Shape((d, grid.columns), dtype) for name in ("i", "h")},
        tiling=tiling,
    )


def down(
    layer: Layer,
    xs: Stack,
    statistics: Stack,
    modulation: Modulation,
    y: Stack,
    weights: DenseParameters,
    q: Stack,
    p1: Stack,
    p2: Stack,
    *,
    tiling: DenseTiling,
    all_layers: bool = False,
) -> tuple[Stack, Stack, Stack, Stack]:
    """Narrow y and gate it; return xs with x' as its next layer, and the stacks q, p1 and p2.

    For `all_layers` see `up`.
    """
    grid, dtype = _grid("down", xs, tiling), q.dtype
    complete = grid.complete_of_layer if all_layers else grid.complete
    d = xs.shape[2]
    rows = {"i": d, "gelu_q": 2 * d, "z": 2 * d}
    return call(
        dense_forward.down,
        layer,
        grid,
        operands=(
            grid.stack(xs),
            grid.stack(statistics),
            grid.image(modulation[..., None]),
            grid.stack(y),
            *(complete(w) for w in (weights.w_down, weights.w1, weights.w2, weights.w3)),
        ),
        results=(grid.stack(xs, ahead=1), *(grid.stack(x) for x in (q, p1, p2))),
        memory={name: Shape((n, grid.columns), dtype) for name, n in rows.items()},
        tiling=tiling,
    )


class GateGradients(NamedTuple):
    """Gradients that `gate_back` returns: of p2 and i [b rows j], of layers, and of the gate."""

    p2: Activation
    i: Activation
    w1: Linear
    b2: Float32[Array, " o"]
    w3: Linear
    gate: Float32[Array, "b d"] | None


def gate_back(
    layer: Layer,
    dx: Activation,
    xs: Stack,
    statistics: Stack,
    modulation: Modulation,
    p1: Stack,
    p2: Stack,
    weights: DenseParameters,
    *,
    tiling: DenseTiling,
) -> GateGradients:
    """Go back from dx, the gradient of x', through W3, the product of two GELUs, and W1."""
    grid, dtype = _grid("gate_back", xs, tiling), p1.dtype
    b, d, j = dx.shape
    gate = modulation[:, GATE:] if modulation.shape[1] > GATE else None
    row = grid.image(Shape((b, 1, d), jnp.float32))
    rows = {"i": d, "z": 2 * d, "dp1": 2 * d} | ({} if dx.dtype == dtype else {"rounded_dx": d})
    dp2, di, dw1, db2, dw3, dx_sums, d_gate = call(
        dense_backward.gate_back,
        layer,
        grid,
        operands=(
            grid.activation(dx),
            grid.stack(xs),
            grid.stack(statistics),
            grid.image(modulation[..., None]),
            NOTHING if gate is None else grid.image(gate),
            grid.stack(p1),
            grid.stack(p2),
            grid.complete(weights.w1.kernel),
            grid.complete(weights.w3.kernel),
        ),
        results=(
            grid.activation(Shape((b, 2 * d, j), dtype)),
            grid.activation(Shape((b, d, j), dtype)),
            grid.total(_gradient(weights.w1)),
            grid.total(_lane_sums(2 * d)),
            grid.total(_like(weights.w3.kernel)),
            row,
            NOTHING if gate is None else row,
        ),
        memory={name: Shape((n, grid.columns), dtype) for name, n in rows.items()},
        tiling=tiling,
    )
    db3 = dx_sums[:, 0]
    if gate is not None:
        d_gate = d_gate[:, 0] + weights.w3.bias * db3
        db3 = gate[:, 0] * db3
    return GateGradients(
        dp2, di, _sum_lanes(dw1), db2.sum(axis=-1), Linear(dw3, db3.sum(axis=0)), d_gate
    )


def hidden_back(
    layer: Layer, dp2: Activation, q: Stack, weights: DenseParameters, *, tiling: DenseTiling
) -> tuple[Activation, Float[Array, "_ _"], Float32[Array, "m o"]]:
    """Go back through W2 and the GELU of q; return dq, dW2 and the gradient of W_down's biases."""
    grid = _grid("hidden_back", q, tiling)
    dq, dw2, db_down = call(
        dense_backward.hidden_back,
        layer,
        grid,
        operands=(grid.activation(dp2), grid.stack(q), grid.complete(weights.w2.kernel)),
        results=(
            grid.activation(Shape(dp2.shape, q.dtype)),
            grid.total(_like(weights.w2.kernel)),
            grid.total(_lane_sums(q.shape[2])),
        ),
        memory={"gelu_q": Shape((q.shape[2], grid.columns), q.dtype)},
        tiling=tiling,
    )
    return dq, dw2, db_down.sum(axis=-1).reshape(weights.w_down.kernel.shape[0], -1)


def wide_back(
    layer: Layer, y: Stack, dq: Activation, weights: DenseParameters, *, tiling: DenseTiling
) -> tuple[Activation, Float[Array, "m _ _"]]:
    """Go back through W_down; return dy and dW_down."""
    grid = _grid("wide_back", y, tiling)
    kernel = weights.w_down.kernel
    return call(
        dense_backward.wide_back,
        layer,
        grid,
        operands=(grid.stack(y), grid.activation(dq), grid.complete(kernel)),
        results=(grid.activation(Shape(y.shape[1:], y.dtype)), grid.total(_like(kernel))),
        memory={},
        tiling=tiling,
    )


def up_back(
    layer: Layer,
    dx: Activation,
    xs: Stack,
    statistics: Stack,
    modulation: Modulation,
    h_pre: Stack,
    du: Activation,
    di: Activation,
    weights: DenseParameters,
    *,
    tiling: DenseTiling,
) -> tuple[Activation, Linear, Linear, Float32[Array, "b 2 d"]]:
    """Go back through W_up, W0, modulation and LayerNorm, and add dx, the gradient of x'.

    Returns:
        The gradients of x, of W0, of W_up, and of shift and scale.
    """
    grid, dtype = _grid("up_back", xs, tiling), h_pre.dtype
    b, d, _ = dx.shape
    memory = {name: Shape((d, grid.columns), dtype) for name in ("i", "gelu_h", "dh")}
    memory["dn"] = Shape((d, grid.columns), jnp.float32)
    memory["means"] = Shape((2, SUBLANES, grid.columns), jnp.float32)
    previous_dx, dw0, dw_up, d_modulation = call(
        dense_backward.up_back,
        layer,
        grid,
        operands=(
            grid.activation(dx),
            grid.stack(xs),
            grid.stack(statistics),
            grid.image(modulation[..., None]),
            grid.stack(h_pre),
            grid.activation(du),
            grid.activation(di),
            grid.complete(weights.w0.kernel),
            grid.complete(weights.w_up.kernel),
        ),
        results=(
            grid.activation(Shape(dx.shape, dx.dtype)),
            grid.total(_gradient(weights.w0)),
            grid.total(_gradient(weights.w_up)),
            grid.image(Shape((b, 2, d), jnp.float32)),
        ),
        memory=memory,
        tiling=tiling,
    )
    return previous_dx, _sum_lanes(dw0), _sum_lanes(dw_up), d_modulation


def _grid(kernel: str, stack: Stack, tiling: DenseTiling) -> Grid:
    _, b, _, j = stack.shape
    cores = math.gcd(b, tiling.num_cores)
    columns = tiling.columns_of(kernel)
    return Grid(cores, b // cores, j // columns, columns)


def _like(kernel: Array) -> Shape:
    return Shape(kernel.shape, kernel.dtype)


def _lane_sums(num: int) -> Shape:
    """The gradient of a bias before its last sum, which is XLA's."""
    return Shape((num, LANES), jnp.float32)


def _gradient(w: Linear) -> Linear:
    return Linear(_like(w.kernel), _lane_sums(w.kernel.shape[-1]))


def _sum_lanes(w: Linear) -> Linear:
    return Linear(w.kernel, w.bias.sum(axis=-1))
