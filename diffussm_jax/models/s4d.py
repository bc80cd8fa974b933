"""The parameters of a bidirectional S4D layer (S4D-Lin of Gu et al. 2022)."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffussm_jax.ops.s4d import Operator, discretize, s4d
from diffussm_jax.shapes import Tokens


class S4D(nnx.Module):
    """Diagonal SSM over the sequence, one filter a channel and direction; forward outputs first.

    Args:
        width: channels d.
        state_size: N, real states a channel; the layer holds N / 2 conjugate pairs.
        direction: "both" or "forward".
        dt_range: log_dt starts uniform between the logarithms of these two.
        share: one filter for all channels.
        dt_rate: multiplies dt, for running a model at another resolution.
        apply: what evaluates the layer, with the signature of `ops.s4d.s4d`.
    """

    def __init__(
        self,
        width: int,
        *,
        state_size: int,
        direction: str,
        dt_range: tuple[float, float],
        share: bool,
        dt_rate: float,
        apply: Operator = s4d,
        rngs: nnx.Rngs,
    ):
        r, d, n = (2 if direction == "both" else 1, 1 if share else width, state_size // 2)
        low, high = (math.log(dt) for dt in dt_range)
        self.log_dt = nnx.Param(jax.random.uniform(rngs.params(), (r, d), minval=low, maxval=high))
        self.log_neg_a_re = nnx.Param(jnp.full((r, d, n), jnp.log(0.5), jnp.float32))
        self.a_im = nnx.Param(
            jnp.broadcast_to(jnp.pi * jnp.arange(n, dtype=jnp.float32), (r, d, n))
        )
        # Variance 1 for each complex entry.
        self.c = nnx.Param(jax.random.normal(rngs.params(), (r, d, n, 2)) / jnp.sqrt(2.0))
        self.skip = nnx.Param(jax.random.normal(rngs.params(), (r, d)))
        self.width, self.direction, self.dt_rate, self.apply = (width, direction, dt_rate, apply)

    def __call__(self, u: Tokens) -> Float[Array, "b l e"]:  # e = r d
        poles, gains = discretize(
            self.log_dt[...],
            self.log_neg_a_re[...],
            self.a_im[...],
            self.c[...],
            dt_rate=self.dt_rate,
        )
        skip = self.skip[...]
        if self.log_dt.shape[1] != self.width:  # a shared filter
            poles, gains, skip = (
                jnp.broadcast_to(p, (p.shape[0], self.width, *p.shape[2:]))
                for p in (poles, gains, skip)
            )
        return self.apply(u, poles, gains, skip, direction=self.direction)
