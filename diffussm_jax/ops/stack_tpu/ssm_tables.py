"""The SSM as XLA prepares it for kernels on channel-major activations, and its gradients.

All but the order of the lanes is as in `pallas_tpu.parameters`.
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


def form_tables(ssm: SSM, *, m: int, reverse: tuple[bool, ...]) -> SSMTables:
    """Form the tables; they depend on the parameters alone, so a sampler forms them once."""
    kernel = parameters.convolution_kernel(ssm, reverse, LANES)
    return SSMTables(parameters.powers(ssm, LANES), first_rows(kernel, m=m, reverse=reverse))


def gradients(ssm: SSM, sums: SSMSums, *, m: int, reverse: tuple[bool, ...]) -> SSM:
    """The SSM's gradients."""
    r, d = ssm.skip.shape
    kernel = jax.ShapeDtypeStruct((r, LANES, d), jnp.float32)
    transpose = jax.linear_transpose(lambda k: first_rows(k, m=m, reverse=reverse), kernel)
    (d_kernel,) = transpose(sums.first_rows.sum(axis=0))
    d_kernel = jnp.moveaxis(d_kernel, -1, 0)  # d r t
    return parameters.gradients(ssm, d_kernel, sums.moments.sum(axis=0), reverse, LANES)


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
