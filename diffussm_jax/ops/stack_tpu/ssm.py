"""The SSM on channel-major activations: its kernels on a layer of stacked arrays.

Activations are `[L b rows j]`: layer, image, plane and channel, groups j of m tokens (the order is
that of `layout`). Row k d + c of u is channel c of the tokens m j + k; row (k r + i) d + c of y is
its output in direction i. The kernels read and write one layer of a stack in place.
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
from diffussm_jax.ops.stack_tpu import ssm_kernels, ssm_tables
from diffussm_jax.ops.stack_tpu.ssm_tables import SSMSums, SSMTables
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
    """

    m: int
    reverse: tuple[bool, ...]
    tiling: Tiling
    gelu: bool = False

    def tables(self, ssm: SSM) -> SSMTables:
        """Form what the kernels read of an SSM."""
        return ssm_tables.form_tables(ssm, m=self.m, reverse=self.reverse)

    def forward(
        self,
        layer: LayerNumber,
        u: Float[Array, "L b u_rows j"],
        tables: SSMTables,
        y: Float[Array, "L b y_rows j"],
    ) -> Float[Array, "L b y_rows j"]:
        """Write y of a layer into its stack, whose buffer becomes the result's."""
        u, ys = self._input_planes(u), self._output_planes(y)
        step = self._step(u)
        ys = self._call(
            ssm_kernels.forward,
            step,
            (layer, u, tables, ys),
            in_specs=(
                _in_layer(u, step),
                _of_channels(tables, step),
                pl.BlockSpec(memory_space=pl.ANY),
            ),
            out_specs=_in_layer(ys, step),
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
    ) -> tuple[Float[Array, "b u_rows j"], SSM]:
        """The gradients of a layer's u and SSM."""
        shape = u.shape[1:]
        u, dy = self._input_planes(u), self._output_planes(dy)
        step = self._step(u)
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
            (layer, u, tables, dy),
            in_specs=(_in_layer(u, step), _of_channels(tables, step), _alone(dy, step)),
            out_specs=(_alone(du, step), _of_images_and_channels(sums, step)),
            out_shape=(du, sums),
            memory=ssm_kernels.BACKWARD_SCRATCH,
        )
        d_ssm = ssm_tables.gradients(ssm, sums, m=self.m, reverse=self.reverse)
        return du.reshape(shape), d_ssm

    def _input_planes(self, u: Array) -> Float[Array, "*L b m d j"]:
        *lead, rows, j = u.shape
        return u.reshape(*lead, self.m, rows // self.m, j)

    def _output_planes(self, y: Array) -> Float[Array, "*L b m r d j"]:
        *lead, rows, j = y.shape
        r = len(self.reverse)
        return y.reshape(*lead, self.m, r, rows // (self.m * r), j)

    def _step(self, u: Float[Array, "L b m d j"]) -> Step:
        _, b, m, d, j = u.shape
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
        _, b, _, d, _ = u.shape
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
    y = kernels.forward(_only_layer(), u[None], tables, y)
    return y[0], (u, ssm, tables)


def _gradients(kernels: StackedSSM, saved: Any, dy: Array) -> tuple[Array, SSM]:
    u, ssm, tables = saved
    return kernels.backward(_only_layer(), u[None], ssm, tables, dy)


apply_ssm.defvjp(_apply, _gradients)


def _only_layer() -> LayerNumber:
    return jnp.zeros(1, jnp.int32)


def _in_layer(x: Any, step: Step) -> pl.BlockSpec:
    """The blocks of a stack `[L b ... d j]`: the prefetched number names the layer, mod L."""
    num_layers, _, *planes, _, j = x.shape
    size = (None, step.num_images, *planes, step.block.num_channels, j)

    def index(c: Any, i: Any, layer: Any) -> tuple:
        return jax.lax.rem(layer[0], num_layers), i, *_zeros(planes), c, 0

    return pl.BlockSpec(size, index)


def _alone(x: Any, step: Step) -> pl.BlockSpec:
    """The blocks of an array `[b ... d j]`."""
    _, *planes, _, j = x.shape
    size = (step.num_images, *planes, step.block.num_channels, j)
    return pl.BlockSpec(size, lambda c, i, layer: (i, *_zeros(planes), c, 0))


def _of_channels(tables: SSMTables, step: Step) -> Any:
    """The blocks of tables `[d rows lanes]`."""

    def spec(x: Array) -> pl.BlockSpec:
        size = (step.block.num_channels, *x.shape[1:])
        return pl.BlockSpec(size, lambda c, i, layer: (c, 0, 0))

    return jax.tree.map(spec, tables)


def _of_images_and_channels(sums: SSMSums, step: Step) -> Any:
    """The blocks of sums `[_ d rows lanes]`, whose first axis counts the steps over the images."""

    def spec(x: Any) -> pl.BlockSpec:
        size = (None, step.block.num_channels, *x.shape[2:])
        return pl.BlockSpec(size, lambda c, i, layer: (i, c, 0, 0))

    return jax.tree.map(spec, sums)


def _zeros(axes: list[int]) -> tuple[int, ...]:
    return (0,) * len(axes)


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
