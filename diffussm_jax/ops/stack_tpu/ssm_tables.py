"""The SSM as XLA prepares it for kernels on channel-major activations, and its gradients.

All but the order of the lanes is as in `pallas_tpu.parameters`.

Tables and gradients cost the same whatever the batch. Where an axis of a mesh splits a batch, each
of its devices has the same SSM; it works on a part of the channels and gathers the other tables.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from diffussm_jax.ops.pallas_tpu import parameters
from diffussm_jax.ops.pallas_tpu.block import LANES
from diffussm_jax.shapes import SSM

# The pairs of all directions in packed lanes, as `pallas_tpu.parameters` puts them.
PackedState = Float32[Array, "d b 128"]


class SSMTables(NamedTuple):
    """What the kernels read of an SSM."""

    powers: Float32[Array, "d k 128"]  # exp(p 2^i), then 2 g
    first_rows: Float32[Array, "d rows 128"]  # of each direction's m circulants


class SSMSums(NamedTuple):
    """What the backward kernel gives for the SSM, for each group of images that ran together."""

    first_rows: Float32[Array, "_ d rows 128"]  # the gradient of the tables' first rows
    moments: Float32[Array, "_ d 8 128"]  # `pallas_tpu.kernels.Gradients.sums`


def form_tables(
    ssm: SSM, *, m: int, reverse: tuple[bool, ...], axis: str | None = None
) -> SSMTables:
    """Form the tables; they depend on the parameters alone, so a sampler forms them once.

    `axis`, of a mesh, splits the work by channels; without it, or where it does not divide them,
    each device forms all tables.
    """
    num_parts = _num_parts(ssm, axis)
    part = _channels_of_part(ssm, axis, num_parts)
    kernel = parameters.convolution_kernel(part, reverse, LANES)
    tables = SSMTables(parameters.powers(part, LANES), first_rows(kernel, m=m, reverse=reverse))
    if num_parts == 1:
        return tables
    return jax.tree.map(lambda x: jax.lax.all_gather(x, axis, tiled=True), tables)


def gradients(
    ssm: SSM, sums: SSMSums, *, m: int, reverse: tuple[bool, ...], axis: str | None = None
) -> SSM:
    """The SSM's gradients; where `axis` splits the work, those of other channels are zero here.

    The sums of all devices along the axis have then gone into them, so the caller adds them up
    along the axis, as it does those of other parameters.
    """
    num_parts = _num_parts(ssm, axis)
    totals = jax.tree.map(lambda x: x.sum(axis=0), sums)
    if num_parts > 1:
        totals = jax.tree.map(lambda x: jax.lax.psum_scatter(x, axis, tiled=True), totals)
    part = _channels_of_part(ssm, axis, num_parts)
    r, d = part.skip.shape
    kernel = jax.ShapeDtypeStruct((r, LANES, d), jnp.float32)
    transpose = jax.linear_transpose(lambda k: first_rows(k, m=m, reverse=reverse), kernel)
    (d_kernel,) = transpose(totals.first_rows)
    d_kernel = jnp.moveaxis(d_kernel, -1, 0)  # d r t
    d_part = parameters.gradients(part, d_kernel, totals.moments, reverse, LANES)
    if num_parts == 1:
        return d_part
    start = jax.lax.axis_index(axis) * d
    return jax.tree.map(
        lambda x, dx: jax.lax.dynamic_update_slice_in_dim(jnp.zeros_like(x), dx, start, axis=1),
        ssm,
        d_part,
    )


def _num_parts(ssm: SSM, axis: str | None) -> int:
    size = 1 if axis is None else jax.lax.axis_size(axis)
    return size if ssm.skip.shape[1] % size == 0 else 1


def _channels_of_part(ssm: SSM, axis: str | None, num_parts: int) -> SSM:
    if num_parts == 1:
        return ssm
    d = ssm.skip.shape[1] // num_parts
    start = jax.lax.axis_index(axis) * d
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, d, axis=1), ssm)


def first_rows(
    kernel: Float32[Array, "r 128 d"], *, m: int, reverse: tuple[bool, ...]
) -> Float32[Array, "d rows 128"]:
    """The first row of each of a direction's m circulants, from K in the order of the tokens.

    `kernel` is K[x], or K[-x] in a backward direction, with x modulo 128. Row k' of a forward
    direction has K[m i + k - k'] at lane P k + i. A roll by i' then leaves lag m (i - i') + k - k'
    at lane P k + i, as long as i >= i'. A backward direction wants what comes from lanes with
    i <= i', which a roll brings from the run before.
    """

    def row(of_direction: Any, first_token: int, backward: bool) -> Array:
        lags = jnp.roll(of_direction, first_token, axis=0)
        runs = jnp.swapaxes(lags.reshape(LANES // m, m, -1), 0, 1)  # m P d
        if backward:
            runs = jnp.concatenate([runs[:, :1], jnp.roll(runs[:, 1:], -1, axis=0)], axis=1)
        return runs.reshape(LANES, -1)

    rows = [row(kernel[i], k, backward) for i, backward in enumerate(reverse) for k in range(m)]
    return jnp.moveaxis(jnp.stack(rows), -1, 0)
