"""Bodies of the SSM's kernels on channel-major activations.

They are `pallas_tpu.kernels` between two changes of layout, each a phase of its own: woven into
the products, its strided accesses would stall the scheduler.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from diffussm_jax.ops.pallas_tpu import kernels
from diffussm_jax.ops.pallas_tpu.block import LANES, ChannelBlock
from diffussm_jax.ops.stack_tpu import activations, layout
from diffussm_jax.ops.stack_tpu.ssm_tables import SSMSums, SSMTables
from diffussm_jax.ops.stack_tpu.ssm_tiling import Step

LEAVING_SCRATCH = ("y", "stage", *kernels.FORWARD_SCRATCH)
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


class Boundary(NamedTuple):
    """The states at the two ends of a sequence, `[c b 128]` in packed lanes; zero if None."""

    entering: Any
    d_leaving: Any  # the gradient of the last state


def leaving(layer_ref, u_ref, tables: SSMTables, last_ref, memory: dict, *, step: Step):
    """Write the states `[c b 128]` that u leaves behind, `[b m r c j]` or `[b m 1 c j]`."""
    del layer_ref
    us = [memory["y"].at[i] for i in range(u_ref.shape[2])]
    for i, rows_ref in enumerate(us):
        _gather(u_ref.at[:, :, i], rows_ref, memory, step, gelu=step.gelu)
    kernels.leaving(
        us,
        kernels.Inputs(None, tables.powers, tables.first_rows, None),
        last_ref,
        memory,
        block=step.block,
        interleave=step.interleave,
    )


def forward(
    layer_ref, u_ref, tables: SSMTables, stack_ref, entering_ref, y_ref, memory: dict, *, step: Step
):
    """Write y `[b m r c j]` of u `[b m c j]`; the index maps alone read the layer's number."""
    del layer_ref, stack_ref
    block = step.block
    _gather(u_ref, memory["u"], memory, step, gelu=step.gelu)
    kernels.forward(
        kernels.Inputs(memory["u"], tables.powers, tables.first_rows, entering_ref),
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
    layer_ref,
    u_ref,
    tables: SSMTables,
    dy_ref,
    boundary: Boundary,
    du_ref,
    sums: SSMSums,
    memory: dict,
    *,
    step: Step,
):
    """Write du `[b m c j]` from u and dy `[b m r c j]`, and the sums for the SSM's gradients."""
    del layer_ref
    block = step.block
    _gather(u_ref, memory["u"], memory, step, gelu=step.gelu)
    for r, _ in enumerate(block.reverse):
        _gather(dy_ref.at[:, :, r], memory["y"].at[r], memory, step)
    kernels.backward(
        kernels.Inputs(memory["u"], tables.powers, tables.first_rows, boundary.entering),
        kernels.Outputs(memory["y"], boundary.d_leaving),
        kernels.Gradients(memory["du"], sums.first_rows, sums.moments, None),
        memory,
        block=block,
        interleave=step.interleave,
    )

    def write(q, k, image, tile):
        if step.gelu:
            _, slope = activations.gelu_and_slope(u_ref[image, k, :, _lanes(q)])
            tile = (tile.astype(jnp.float32) * slope).astype(block.dtype)
        du_ref[image, k, :, _lanes(q)] = tile

    layout.scatter(memory["du"], write, memory["stage"], block, num_images=step.num_images)


def _gather(u_ref, rows_ref, memory: dict, step: Step, *, gelu: bool = False) -> None:
    """Fill the rows of a block with u `[b m c j]`, or with gelu(u)."""

    def read(q, k, image):
        u = u_ref[image, k, :, _lanes(q)]
        return activations.gelu(u).astype(u.dtype) if gelu else u

    layout.gather(read, rows_ref, memory["stage"], step.block, num_images=step.num_images)


def _lanes(q: Any):
    return pl.ds(pl.multiple_of(q * LANES, LANES), LANES)
