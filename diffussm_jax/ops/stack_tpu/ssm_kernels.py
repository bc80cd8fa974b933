"""Bodies of the SSM's kernels on channel-major activations.

They are `pallas_tpu.kernels` between two changes of layout, each a phase of its own: woven into
the products, its strided accesses would stall the scheduler.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from diffussm_jax.ops.pallas_tpu import kernels
from diffussm_jax.ops.pallas_tpu.block import LANES, ChannelBlock
from diffussm_jax.ops.stack_tpu import layout
from diffussm_jax.ops.stack_tpu.activations import gelu, gelu_and_slope
from diffussm_jax.ops.stack_tpu.ssm_tables import SSMSums, SSMTables
from diffussm_jax.ops.stack_tpu.ssm_tiling import Step

FORWARD_SCRATCH = ("u", "y", "stage", *kernels.FORWARD_SCRATCH)
BACKWARD_SCRATCH = ("u", "y", "du", "stage", *kernels.BACKWARD_SCRATCH)


def scratch(block: ChannelBlock, names: tuple[str, ...]) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of the working memory by name."""
    rows = (block.num_channels, block.num_chunks * block.batch, LANES)
    shapes = {
        "u": jax.ShapeDtypeStruct(rows, block.dtype),
        "y": jax.ShapeDtypeStruct((len(block.reverse), *rows), block.dtype),
        "du": jax.ShapeDtypeStruct(rows, block.dtype),
        "stage": layout.stage_shape(block),
    }
    own = {name: shapes[name] for name in names if name in shapes}
    return own | kernels.scratch(block, *(name for name in names if name not in shapes))


def forward(layer_ref, u_ref, tables: SSMTables, stack_ref, y_ref, memory: dict, *, step: Step):
    """Write y `[b m r c j]` of u `[b m c j]`; the index maps alone read the layer's number."""
    del layer_ref, stack_ref
    block = step.block
    _gather_input(u_ref, memory, step)
    kernels.forward(
        kernels.Inputs(memory["u"], tables.powers, tables.first_rows, None),
        kernels.Outputs(memory["y"], None),
        memory,
        block=block,
        interleave=step.interleave,
    )
    for r, _ in enumerate(block.reverse):

        def write(q, k, image, tile, r=r):
            y_ref[image, k, r, :, _lanes(q)] = tile

        layout.scatter(memory["y"].at[r], write, memory["stage"], block, num_images=step.num_images)


def backward(
    layer_ref, u_ref, tables: SSMTables, dy_ref, du_ref, sums: SSMSums, memory: dict, *, step: Step
):
    """Write du `[b m c j]` from u and dy `[b m r c j]`, and the sums for the SSM's gradients."""
    del layer_ref
    block = step.block
    _gather_input(u_ref, memory, step)
    for r, _ in enumerate(block.reverse):

        def read(q, k, image, r=r):
            return dy_ref[image, k, r, :, _lanes(q)]

        layout.gather(read, memory["y"].at[r], memory["stage"], block, num_images=step.num_images)
    kernels.backward(
        kernels.Inputs(memory["u"], tables.powers, tables.first_rows, None),
        kernels.Outputs(memory["y"], None),
        kernels.Gradients(memory["du"], sums.first_rows, sums.moments, None),
        memory,
        block=block,
        interleave=step.interleave,
    )

    def write(q, k, image, tile):
        if step.gelu:
            _, slope = gelu_and_slope(u_ref[image, k, :, _lanes(q)])
            tile = (tile.astype(jnp.float32) * slope).astype(block.dtype)
        du_ref[image, k, :, _lanes(q)] = tile

    layout.scatter(memory["du"], write, memory["stage"], block, num_images=step.num_images)


def _gather_input(u_ref, memory: dict, step: Step) -> None:
    def read(q, k, image):
        u = u_ref[image, k, :, _lanes(q)]
        return gelu(u).astype(u.dtype) if step.gelu else u

    layout.gather(read, memory["u"], memory["stage"], step.block, num_images=step.num_images)


def _lanes(q: Any):
    return pl.ds(pl.multiple_of(q * LANES, LANES), LANES)
