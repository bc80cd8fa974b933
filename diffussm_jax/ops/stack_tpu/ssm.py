"""The SSM on channel-major activations: its kernels on a layer of stacked arrays.

Activations are `[L b rows j]`: layer, image, plane and channel, groups j of m tokens (the order is
that of `layout`). Row k d + c of u is channel c of the tokens m j + k; row (k r + i) d + c of y is
its output in direction i. The kernels read and write one layer of a stack in place.

A sequence may be a part of one: a state enters it, and what it adds to the states is to be had.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from diffussm_jax.ops.pallas_tpu.block import LANES, SUBLANES
from diffussm_jax.ops.pallas_tpu.tiling import Tiling
from diffussm_jax.ops.stack_tpu import ssm_blocks as blocks
from diffussm_jax.ops.stack_tpu import ssm_kernels, ssm_tables
from diffussm_jax.ops.stack_tpu.ssm_kernels import Boundary
from diffussm_jax.ops.stack_tpu.ssm_tables import PackedState, SSMSums, SSMTables
from diffussm_jax.ops.stack_tpu.ssm_tiling import SSMShape, Step, step_for
from diffussm_jax.shapes import SSM

LayerNumber = Int[Array, " 1"]
_STACK_OF_Y = 4  # among the forward kernel's operands, after the number, u and the two tables


@dataclasses.dataclass(frozen=True)
class StackedSSM:
    """The SSM of every layer of a stack, as kernels.

    Attributes:
        m: tokens of a group.
        reverse: for each direction, whether it reads from the end.
        tiling: sizes for the chip; 0 channels are 16, those of a bfloat16 register.
        gelu: whether the SSM reads gelu(u); du is then the gradient of u before GELU.
        channel_axis: of a mesh, which splits the batch: the work on tables (`ssm_tables`) too.
    """

    m: int
    reverse: tuple[bool, ...]
    tiling: Tiling
    gelu: bool = False
    channel_axis: str | None = None

    def tables(self, ssm: SSM) -> SSMTables:
        """Form what the kernels read of an SSM."""
        return ssm_tables.form_tables(ssm, m=self.m, reverse=self.reverse, axis=self.channel_axis)

    def entering(
        self, layer: LayerNumber, u: Float[Array, "L b u_rows j"], tables: SSMTables
    ) -> PackedState | None:
        """The state before a layer's first token; None is zero."""
        return None

    def d_leaving(self, dy: Float[Array, "b y_rows j"], tables: SSMTables) -> PackedState | None:
        """The gradient of the state after a layer's last token; None is zero."""
        return None

    def forward(
        self,
        layer: LayerNumber,
        u: Float[Array, "L b u_rows j"],
        tables: SSMTables,
        y: Float[Array, "L b y_rows j"],
        entering: PackedState | None = None,
    ) -> Float[Array, "L b y_rows j"]:
        """Write y of a layer into its stack, whose buffer becomes the result's.

        `entering` may be at hand from the method of this name.
        """
        if entering is None:
            entering = self.entering(layer, u, tables)
        u, ys = self.input_planes(u), self.output_planes(y)
        step = self.step(u)
        entering = blocks.by_step(entering, step)
        ys = self._call(
            ssm_kernels.forward,
            step,
            (layer, u, tables, ys, entering),
            in_specs=(
                blocks.in_layer(u, step),
                blocks.of_channels(tables, step),
                pl.BlockSpec(memory_space=pl.ANY),
                blocks.of_states(entering, step),
            ),
            out_specs=blocks.in_layer(ys, step),
            out_shape=_like(ys),
            memory=ssm_kernels.FORWARD_SCRATCH,
            input_output_aliases={_STACK_OF_Y: 0},
        )
        return ys.reshape(y.shape)

    def backward(
        self,
        layer: LayerNumber,
        u: Float[Array, "L b u_rows j"],
        ssm: SSM,
        tables: SSMTables,
        dy: Float[Array, "b y_rows j"],
        entering: PackedState | None = None,
    ) -> tuple[Float[Array, "b u_rows j"], SSM]:
        """The gradients of a layer's u and SSM (`ssm_tables.gradients`).

        For `entering` see `forward`.
        """
        shape = u.shape[1:]
        if entering is None:
            entering = self.entering(layer, u, tables)
        d_leaving = self.d_leaving(dy, tables)
        u, dy = self.input_planes(u), self.output_planes(dy)
        step = self.step(u)
        boundary = Boundary(blocks.by_step(entering, step), blocks.by_step(d_leaving, step))
        du = jax.ShapeDtypeStruct(u.shape[1:], u.dtype)
        groups = (u.shape[1] // step.num_images, u.shape[3])  # of images, and channels
        sums = jax.eval_shape(
            lambda: SSMSums(
                jnp.zeros((*groups, *tables.first_rows.shape[1:])),
                jnp.zeros((*groups, SUBLANES, LANES)),
            )
        )
        du, sums = self._call(
            ssm_kernels.backward,
            step,
            (layer, u, tables, dy, boundary),
            in_specs=(
                blocks.in_layer(u, step),
                blocks.of_channels(tables, step),
                blocks.alone(dy, step),
                blocks.of_states(boundary, step),
            ),
            out_specs=(blocks.alone(du, step), blocks.of_images_and_channels(sums, step)),
            out_shape=(du, sums),
            memory=ssm_kernels.BACKWARD_SCRATCH,
        )
        d_ssm = ssm_tables.gradients(
            ssm, sums, m=self.m, reverse=self.reverse, axis=self.channel_axis
        )
        return du.reshape(shape), d_ssm

    def leaving(
        self, layer: LayerNumber, u: Float[Array, "L b m r d j"], tables: SSMTables
    ) -> PackedState:
        """What a layer's u adds to the states: those that it alone would leave.

        Each direction reads the u of its own, or all read the only one.
        """
        _, b, _, _, d, _ = u.shape
        step = self.step(u)
        last = jax.ShapeDtypeStruct((d, b // step.num_images, step.block.batch, LANES), jnp.float32)
        last = self._call(
            ssm_kernels.leaving,
            step,
            (layer, u, tables),
            in_specs=(blocks.in_layer(u, step), blocks.of_channels(tables, step)),
            out_specs=blocks.of_states(last, step),
            out_shape=last,
            memory=ssm_kernels.LEAVING_SCRATCH,
        )
        return last[:, :, : step.num_images].reshape(d, b, LANES)

    def input_planes(self, u: Array) -> Float[Array, "*L b m d j"]:
        """Take the rows of u apart."""
        *lead, rows, j = u.shape
        return u.reshape(*lead, self.m, rows // self.m, j)

    def output_planes(self, y: Array) -> Float[Array, "*L b m r d j"]:
        """Take the rows of y apart."""
        *lead, rows, j = y.shape
        r = len(self.reverse)
        return y.reshape(*lead, self.m, r, rows // (self.m * r), j)

    def step(self, u: Float[Array, "L b m *r d j"]) -> Step:
        """What a grid step over this array runs on."""
        _, b, m, *_, d, j = u.shape
        return step_for(SSMShape(b, m, d, j, u.dtype, self.reverse), self.tiling, gelu=self.gelu)

    def _call(
        self,
        kernel: Callable,
        step: Step,
        operands: tuple,
        *,
        in_specs: Any,
        out_specs: Any,
        out_shape: Any,
        memory: tuple[str, ...],
        **options: Any,
    ) -> Any:
        """Run a kernel on every block of channels and, within it, every group of images."""
        _, u, *_ = operands
        _, b, *_, d, _ = u.shape
        scratch = ssm_kernels.scratch(step.block, memory)
        return pl.pallas_call(
            functools.partial(kernel, step=step),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=(d // step.block.num_channels, b // step.num_images),
                in_specs=in_specs,
                out_specs=out_specs,
                scratch_shapes=[
                    {name: pltpu.VMEM(x.shape, x.dtype) for name, x in scratch.items()}
                ],
            ),
            out_shape=out_shape,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel"),
                vmem_limit_bytes=self.tiling.vmem_bytes,
            ),
            interpret=self.tiling.interpret,
            name=f"ssm_{kernel.__name__}",
            **options,
        )(*operands)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def apply_ssm(
    kernels: StackedSSM, u: Float[Array, "b u_rows j"], ssm: SSM
) -> Float[Array, "b y_rows j"]:
    """Apply an SSM to activations that are not stacked."""
    y, _ = _apply(kernels, u, ssm)
    return y


def _apply(kernels: StackedSSM, u: Array, ssm: SSM) -> tuple[Array, Any]:
    b, rows, j = u.shape
    tables = kernels.tables(ssm)
    y = jax.lax.empty((1, b, len(kernels.reverse) * rows, j), u.dtype)
    entering = kernels.entering(_only_layer(), u[None], tables)
    y = kernels.forward(_only_layer(), u[None], tables, y, entering)
    return y[0], (u, ssm, tables, entering)


def _gradients(kernels: StackedSSM, saved: Any, dy: Array) -> tuple[Array, SSM]:
    u, ssm, tables, entering = saved
    return kernels.backward(_only_layer(), u[None], ssm, tables, dy, entering)


apply_ssm.defvjp(_apply, _gradients)


def _only_layer() -> LayerNumber:
    return jnp.zeros(1, jnp.int32)


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
