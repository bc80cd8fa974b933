"""Bodies of the fused TPU kernels: the chunked form for a block of channels, its sequence in VMEM.

A state of 128 lanes holds all directions of one channel, real parts in the lower half and imaginary
parts in the upper, each half divided among the directions:
    [forward re, backward re | forward im, backward im]
Rows are (chunk, batch): `u[c]` is `[g*b t]`. No table crosses HBM; the kernels form them as
products of exp(p 2^i), in two levels:
    rising[8 i + j]  = coarse[i] rising_fine[j]
    falling[8 i + j] = coarse[T/8 - 1 - i] falling_fine[j]
where rising is exp(p t) in a forward lane and exp(p (T - 1 - t)) in a backward one, falling the
reverse. A chunk adds u falling to its state, and the state adds 2 Re(g exp(p) rising x) to the
outputs.

The work goes by phase and not by channel: products of all channels, then their recurrences, then
the outputs; within a phase the channels are independent and fill the pipelines.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffussm_jax.ops.pallas_tpu.block import LANES, SUBLANES, ChannelBlock, dot
from diffussm_jax.ops.pallas_tpu.states import States
from diffussm_jax.ops.pallas_tpu.tables import NUM_FINE, Tables

# What a matrix product contracts: columns with rows, columns with columns, rows with rows.
NN, NT, TN = ((1,), (0,)), ((1,), (1,)), ((0,), (0,))


class Inputs(NamedTuple):
    """Inputs of a kernel. The fields are arrays, Refs or BlockSpecs, depending on the caller."""

    u: Any  # d g*b t
    powers: Any  # d k 128: exp(p 2^i), then 2 g
    kernel: Any  # d r*m t: the first rows of each direction's m circulants
    state: Any  # d b 128, or None


class Outputs(NamedTuple):
    """Outputs of the forward kernel, or their gradients."""

    y: Any  # r d g*b t
    last: Any  # d b 128, or None


class Gradients(NamedTuple):
    """Outputs of the backward kernel: gradients of u, kernel and state, and sums for the others.

    The rows of `sums`, in packed complex lanes, are for V the gradient of a table and t its rows:
        0, 1: sum V conj(falling), sum t V conj(falling);
        2, 3: sum V rising, sum t V rising, where V is that of `reading`, which holds conjugates;
        4, 5: sum x z, sum x swap(z) over the states x and their gradients z.
    """

    u: Any
    kernel: Any
    sums: Any  # d 8 128
    state: Any


def scratch(block: ChannelBlock, *names: str) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of the working memory by name; every table has room for all channels."""
    rows = block.num_chunks * block.batch
    t = block.chunk_size
    r = len(block.reverse)
    shapes = {
        "level": (2, block.num_powers, LANES),
        "coarse": (2, block.num_coarse, LANES),
        "fine": (NUM_FINE, SUBLANES, LANES),
        "local": (rows, LANES),  # what each chunk adds to the state
        "entering": (rows, LANES),  # the state that enters each step
        "d_entering": (rows, LANES),
        "d_within": (r, t, t),  # gradient of the triangles
        "d_tables": (2, t, LANES),  # gradients of falling and reading
    }
    return {
        name: jax.ShapeDtypeStruct((block.num_channels, *shapes[name]), jnp.float32)
        for name in names
    }


FORWARD_SCRATCH = ("level", "coarse", "fine", "local", "entering")
BACKWARD_SCRATCH = (*FORWARD_SCRATCH, "d_entering", "d_within", "d_tables")


def forward(
    inputs: Inputs, outputs: Outputs, memory: dict, *, block: ChannelBlock, interleave: int
) -> None:
    """Write y and the last states of a block of channels."""
    u_ref = inputs.u
    local_ref = memory["local"]
    entering_ref = memory["entering"]
    tables, states = _form(block, inputs, memory)
    for c in block.channels:
        local_ref[c] = dot(u_ref[c], tables.falling(c), NN)
    for group in block.groups(interleave):
        states.carry(group, local_ref, entering_ref, outputs.last)
    for c in block.channels:
        x = entering_ref[c].astype(block.dtype)
        reading = tables.reading(c)
        for r, backward in enumerate(block.reverse):
            within = tables.toeplitz(_first_rows(block, inputs, c, r), backward=backward)
            y = dot(u_ref[c], within, NN)
            y += dot(block.in_order(x, r), tables.only(reading, r), NT)
            outputs.y[r, c] = y.astype(block.dtype)


def leaving(
    us: list, inputs: Inputs, last_ref, memory: dict, *, block: ChannelBlock, interleave: int
) -> None:
    """Write the states that a block of channels leaves behind, without y.

    There is a u for each direction, or one for all.
    """
    local_ref = memory["local"]
    tables, states = _form(block, inputs, memory)
    for c in block.channels:
        falling = tables.falling(c)
        local_ref[c] = tables.by_direction([dot(u_ref[c], falling, NN) for u_ref in us])
    for group in block.groups(interleave):
        states.carry(group, local_ref, memory["entering"], last_ref)


def backward(
    inputs: Inputs,
    cotangents: Outputs,
    gradients: Gradients,
    memory: dict,
    *,
    block: ChannelBlock,
    interleave: int,
) -> None:
    """Write the gradients of a block of channels.

    The states are computed again, since only u and the parameters were kept.
    """
    u_ref = inputs.u
    dy_ref = cotangents.y
    local_ref = memory["local"]
    entering_ref = memory["entering"]
    d_entering_ref = memory["d_entering"]
    d_within_ref = memory["d_within"]
    d_tables_ref = memory["d_tables"]
    directions = range(len(block.reverse))
    tables, states = _form(block, inputs, memory)
    for c in block.channels:
        local_ref[c] = dot(u_ref[c], tables.falling(c), NN)
    for c in block.channels:
        reading = tables.reading(c)
        d_entering_ref[c] = sum(dot(dy_ref[r, c], tables.only(reading, r), NN) for r in directions)
    for group in block.groups(interleave):
        states.carry(group, local_ref, entering_ref, None)
    d_local_ref = local_ref  # read for the last time above
    for group in block.groups(interleave):
        sums = states.carry_adjoint(
            group, cotangents.last, entering_ref, d_entering_ref, d_local_ref, gradients.state
        )
        for c, (same, crossed) in zip(group, sums):
            gradients.sums[c, 4:5] = same
            gradients.sums[c, 5:6] = crossed
    for c in block.channels:
        d_local = block.by_chunk(d_local_ref[c]).astype(block.dtype)
        du = dot(d_local, tables.falling(c), NT)
        for r, backward in enumerate(block.reverse):
            within = tables.toeplitz(_first_rows(block, inputs, c, r), backward=backward)
            du += dot(dy_ref[r, c], within, NT)
        gradients.u[c] = du.astype(block.dtype)
    for c in block.channels:
        for r in directions:
            d_within_ref[c, r] = dot(u_ref[c], dy_ref[r, c], TN)
        d_local = block.by_chunk(d_local_ref[c]).astype(block.dtype)
        d_tables_ref[c, 0] = dot(u_ref[c], d_local, TN)
    for c in block.channels:
        x = entering_ref[c].astype(block.dtype)
        parts = [dot(dy_ref[r, c], block.in_order(x, r), TN) for r in directions]
        d_tables_ref[c, 1] = tables.by_direction(parts)
    tables.sum_diagonals(d_within_ref, gradients.kernel)
    tables.sum_moments(d_tables_ref, gradients.sums)


def _form(block: ChannelBlock, inputs: Inputs, memory: dict) -> tuple[Tables, States]:
    tables = Tables(block, inputs.powers, memory["level"], memory["coarse"], memory["fine"])
    tables.form_powers()
    return tables, States(block, inputs.state, memory["level"])


def _first_rows(block: ChannelBlock, inputs: Inputs, c: int, r: int):
    return inputs.kernel[c, r * block.m : (r + 1) * block.m]
