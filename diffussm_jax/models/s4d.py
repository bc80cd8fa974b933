"""The parameters of a bidirectional S4D layer (S4D-Lin of Gu et al. 2022)."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffussm_jax.config import ModelConfig
from diffussm_jax.ops.s4d import DIRECTIONS, Operator, discretize
from diffussm_jax.shapes import SSM, Tokens


class S4D(nnx.Module):
    """Diagonal SSM over the sequence, one filter for each channel and direction.

    The forward outputs come first. With `config.share_ssm` all channels share one filter, which a
    pair as `config.dt_rate` gives two paces, one for each half of the channels.
    """

    def __init__(self, config: ModelConfig, *, apply_s4d: Operator, rngs: nnx.Rngs):
        r = len(DIRECTIONS[config.direction])
        d = 1 if config.share_ssm else config.width
        n = config.state_size // 2  # conjugate pairs
        low, high = (math.log(dt) for dt in config.dt_range)
        self.log_dt = nnx.Param(jax.random.uniform(rngs.params(), (r, d), minval=low, maxval=high))
        self.log_neg_a_re = nnx.Param(jnp.full((r, d, n), jnp.log(0.5), jnp.float32))
        self.a_im = nnx.Param(
            jnp.broadcast_to(jnp.pi * jnp.arange(n, dtype=jnp.float32), (r, d, n))
        )
        # The paper learns A, B, C and Delta. B starts at 1, as in S4D.
        self.b = nnx.Param(jnp.zeros((r, d, n, 2)).at[..., 0].set(1.0))
        # Variance 1 for each complex entry.
        self.c = nnx.Param(jax.random.normal(rngs.params(), (r, d, n, 2)) / jnp.sqrt(2.0))
        self.skip = nnx.Param(jax.random.normal(rngs.params(), (r, d)))
        self.config = config
        self.apply_s4d = apply_s4d

    def __call__(self, u: Tokens) -> Float[Array, "b l e"]:
        return self.apply_s4d(u, self.discretize(), direction=self.config.direction)

    def discretize(self) -> SSM:
        """The SSM of every channel."""
        ssm = discretize(
            self.log_dt[...],
            self.log_neg_a_re[...],
            self.a_im[...],
            self.b[...],
            self.c[...],
            self.skip[...],
            dt_rate=self._dt_rate(),
        )
        if not self.config.share_ssm:
            return ssm
        d = self.config.width
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (x.shape[0], d, *x.shape[2:])), ssm)

    def _dt_rate(self) -> float | Float[Array, " d"]:
        rate = self.config.dt_rate
        if not isinstance(rate, tuple):
            return rate
        return jnp.repeat(jnp.asarray(rate, jnp.float32), self.config.width // len(rate))
