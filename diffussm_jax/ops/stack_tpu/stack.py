"""A stack of equal blocks as one operation with a gradient of its own.

The loops over layers carry stacks [L b rows j], of which each kernel reads and writes a layer in
place, its number modulo L. The forward pass keeps x and every pre-activation, so the backward pass
recomputes GELUs and LayerNorms alone; or it keeps x alone, and the backward pass runs each layer
again. Where no gradient is asked for, the stack of x has two layers, which take turns.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float, Int32

from diffussm_jax.ops.stack_tpu import dense
from diffussm_jax.ops.stack_tpu.dense_tiling import DenseTiling
from diffussm_jax.ops.stack_tpu.parameters import (
    DenseParameters,
    Linear,
    backward_layout,
    forward_layout,
    transposed,
)
from diffussm_jax.ops.stack_tpu.ssm import StackedSSM
from diffussm_jax.ops.stack_tpu.ssm_tables import PackedState, SSMTables
from diffussm_jax.shapes import SSM, Condition

Rows = Float[Array, "b d j"]
Modulation = Float[Array, "b n d"]


class LayerParameters(NamedTuple):
    """What the stack reads of a layer's parameters, complete and rounded as the model rounds."""

    dense: DenseParameters
    ssm: SSM
    modulation: Linear  # d -> n*d


class ForwardWeights(NamedTuple):
    """A layer's parameters as the forward kernels read them."""

    dense: DenseParameters
    tables: SSMTables
    modulation: Linear


class OfSSM(NamedTuple):
    """What the backward pass has from the forward pass of a layer's SSM."""

    tables: SSMTables
    entering: PackedState | None


class Stacks(NamedTuple):
    """The activations of all layers, [L b rows j]; `dense_forward` has the names."""

    x: Array
    statistics: Array
    h_pre: Array
    u_pre: Array
    y: Array
    q: Array
    p1: Array
    p2: Array


@dataclasses.dataclass(frozen=True)
class FusedStack:
    """The kernels of a stack.

    Attributes:
        take: takes the parameters of a layer, a pytree that the stack does not look into, apart;
            hashable, and differentiable.
        ssm: the SSM, which reads gelu(u).
        tiling: of the dense kernels.
        dtype: of the products, and of all activations but x.
        recompute: keep x of each layer alone for the backward pass.
    """

    take: Callable[[Any], LayerParameters]
    ssm: StackedSSM
    tiling: DenseTiling
    dtype: Any
    recompute: bool = False

    def prepare(self, layer: Any) -> ForwardWeights:
        """Lay out a layer for the forward kernels; it depends on the parameters alone."""
        return self.lay_out(self.take(layer))

    def lay_out(self, parameters: LayerParameters) -> ForwardWeights:
        """The same from what the stack reads of a layer."""
        weights = forward_layout(parameters.dense, self.dtype)
        return ForwardWeights(weights, self.ssm.tables(parameters.ssm), parameters.modulation)

    def forward(
        self,
        number: Int32[Array, ""],
        weights: ForwardWeights,
        c: Condition,
        stacks: Stacks,
        *,
        all_layers: bool = False,
    ) -> tuple[Stacks, PackedState | None]:
        """Run a layer: x of layer `number` becomes x of the next.

        `weights.dense` are those of all layers, with a leading axis, if `all_layers` says so. The
        state that enters a part of a sequence is returned too.
        """
        layer = number[None]
        options: dict[str, Any] = {"tiling": self.tiling, "all_layers": all_layers}
        modulation = modulation_of(weights.modulation, c)
        x, statistics, h_pre, u_pre, y, q, p1, p2 = stacks
        statistics, h_pre, u_pre = dense.up(
            layer, x, modulation, weights.dense, statistics, h_pre, u_pre, **options
        )
        entering = self.ssm.entering(layer, u_pre, weights.tables)
        y = self.ssm.forward(layer, u_pre, weights.tables, y, entering)
        x, q, p1, p2 = dense.down(
            layer, x, statistics, modulation, y, weights.dense, q, p1, p2, **options
        )
        return Stacks(x, statistics, h_pre, u_pre, y, q, p1, p2), entering

    def backward(
        self,
        number: Int32[Array, ""],
        parameters: LayerParameters,
        of_ssm: OfSSM,
        modulation: Modulation,
        stacks: Stacks,
        dx: Rows,
    ) -> tuple[Rows, DenseParameters, SSM, Modulation]:
        """The gradients of a layer's x, weights and modulation, from that of its result."""
        layer, tiling = number[None], self.tiling
        x, statistics, h_pre, u_pre, y, q, p1, p2 = stacks
        w = backward_layout(parameters.dense, self.dtype)
        gate = dense.gate_back(layer, dx, x, statistics, modulation, p1, p2, w, tiling=tiling)
        dq, dw2, db_down = dense.hidden_back(layer, gate.p2, q, w, tiling=tiling)
        dy, dw_down = dense.wide_back(layer, y, dq, w, tiling=tiling)
        du, d_ssm = self.ssm.backward(
            layer, u_pre, parameters.ssm, of_ssm.tables, dy, of_ssm.entering
        )
        dx, dw0, dw_up, d_modulation = dense.up_back(
            layer, dx, x, statistics, modulation, h_pre, du, gate.i, w, tiling=tiling
        )
        if gate.gate is not None:
            d_modulation = jnp.concatenate([d_modulation, gate.gate[:, None]], axis=1)
        w_down, w2 = Linear(dw_down, db_down), Linear(dw2, gate.b2)
        d_dense = DenseParameters(dw0, dw_up, w_down, gate.w1, w2, gate.w3)
        return dx, d_dense, d_ssm, d_modulation

    def empty_stacks(self, x: Rows, num_layers: int, num_others: int) -> Stacks:
        """Room for x of so many layers and a result, and for the others; the first x is there."""
        b, d, j = x.shape
        m, r = self.ssm.m, len(self.ssm.reverse)

        def empty(number: int, num_layers: int, rows: int, dtype: Any) -> Array:
            # XLA would make one buffer of equal ones, and then copy it; axes of 1 tell them apart.
            shape = num_layers, b, rows, j
            return jax.lax.empty((1,) * number + shape, dtype).reshape(shape)

        rows = (2, d, m * d, m * r * d, 2 * d, 2 * d, 2 * d)
        dtypes = (jnp.float32, *[self.dtype] * 6)
        xs = empty(0, num_layers + 1, d, x.dtype)
        xs = jax.lax.dynamic_update_index_in_dim(xs, x, 0, axis=0)
        others = zip(range(1, 8), rows, dtypes)
        return Stacks(xs, *(empty(i, num_others, n, dtype) for i, n, dtype in others))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def run_stack(stack: FusedStack, layers: Any, x: Rows, c: Condition) -> Rows:
    """Apply layers, whose parameters have a leading axis, one after the other to x.

    Values and gradients are those of `models.block`'s blocks, up to rounding. There is no
    forward-mode derivative: JAX raises TypeError.
    """

    def layer(stacks: Stacks, inputs: tuple[Array, Any]) -> tuple[Stacks, None]:
        number, parameters = inputs
        stacks, _ = stack.forward(number, stack.prepare(parameters), c, stacks)
        return stacks, None

    return _run_in_turn(stack, layer, layers, x)


def prepare_stack(stack: FusedStack, layers: Any) -> ForwardWeights:
    """Lay out all layers for `run_prepared`, which thus can run many times."""

    def lay_out(layer: Any) -> ForwardWeights:
        weights = stack.prepare(layer)
        return weights._replace(dense=transposed(weights.dense))

    return jax.lax.map(lay_out, layers)


def run_prepared(stack: FusedStack, weights: ForwardWeights, x: Rows, c: Condition) -> Rows:
    """The values of `run_stack`, without gradients."""

    def layer(stacks: Stacks, inputs: tuple[Array, ForwardWeights]) -> tuple[Stacks, None]:
        number, of_layer = inputs
        # The kernels read the dense layers in place; the scan would copy each.
        of_layer = of_layer._replace(dense=weights.dense)
        stacks, _ = stack.forward(number, of_layer, c, stacks, all_layers=True)
        return stacks, None

    return _run_in_turn(stack, layer, weights, x)


def _run_in_turn(stack: FusedStack, layer: Callable, layers: Any, x: Rows) -> Rows:
    stacks, _ = jax.lax.scan(layer, stack.empty_stacks(x, 1, 1), _numbered(layers))
    return _x_of(stacks, _depth(layers) % 2)


def _forward(stack: FusedStack, layers: Any, x: Rows, c: Condition) -> tuple[Rows, tuple]:
    def layer(stacks: Stacks, inputs: tuple[Array, Any]) -> tuple[Stacks, OfSSM | None]:
        number, parameters = inputs
        weights = stack.prepare(parameters)
        stacks, entering = stack.forward(number, weights, c, stacks)
        return stacks, None if stack.recompute else OfSSM(weights.tables, entering)

    depth = _depth(layers)
    empty = stack.empty_stacks(x, depth, 1 if stack.recompute else depth)
    stacks, of_ssm = jax.lax.scan(layer, empty, _numbered(layers))
    return _x_of(stacks, depth), (layers, c, stacks, of_ssm)


def _backward(stack: FusedStack, saved: tuple, dx: Rows) -> tuple[Any, Rows, Condition]:
    layers, c, kept, of_ssm = saved

    def layer(carry: tuple[Rows, Array, Stacks | None], inputs: tuple) -> tuple[tuple, Any]:
        dx, dc, recomputed = carry
        number, (layer, of_ssm) = inputs
        parameters, pull = jax.vjp(stack.take, layer)
        if recomputed is not None:
            weights = stack.lay_out(parameters)
            recomputed, entering = stack.forward(number, weights, c, recomputed)
            of_ssm = OfSSM(weights.tables, entering)
        modulation, pull_modulation = jax.vjp(modulation_of, parameters.modulation, c)
        dx, d_dense, d_ssm, d_modulation = stack.backward(
            number, parameters, of_ssm, modulation, recomputed or kept, dx
        )
        d_linear, dc_of_layer = pull_modulation(d_modulation.astype(modulation.dtype))
        gradients = LayerParameters(d_dense, d_ssm, d_linear)
        gradients = jax.tree.map(lambda x, dx: dx.astype(x.dtype), parameters, gradients)
        return (dx, dc + dc_of_layer.astype(jnp.float32), recomputed), *pull(gradients)

    carry = dx, jnp.zeros(c.shape, jnp.float32), kept if stack.recompute else None
    (dx, dc, _), d_layers = jax.lax.scan(layer, carry, _numbered((layers, of_ssm)), reverse=True)
    return d_layers, dx, dc.astype(c.dtype)


run_stack.defvjp(_forward, _backward)


def modulation_of(linear: Linear, c: Condition) -> Modulation:
    """Shift, scale and, where the model has it, gate of each image, from SiLU(c)."""
    vectors = jax.nn.silu(c) @ linear.kernel + linear.bias
    return vectors.reshape(len(c), -1, c.shape[1])


def _numbered(layers: Any) -> tuple[Int32[Array, " L"], Any]:
    return jnp.arange(_depth(layers), dtype=jnp.int32), layers


def _depth(layers: Any) -> int:
    return len(jax.tree.leaves(layers)[0])


def _x_of(stacks: Stacks, number: int) -> Rows:
    # What reads x next may want other strides, and XLA would copy the complete stack to them.
    return with_layout_constraint(stacks.x[number], Layout(major_to_minor=(0, 1, 2)))
