"""The gated bidirectional SSM block with its hourglass (the paper, figure 2)."""

import jax
import jax.numpy as jnp
from flax import nnx

from diffussm_jax.config import ModelConfig
from diffussm_jax.models.layers import GroupedLinear, Modulation, linear, modulate
from diffussm_jax.models.s4d import S4D
from diffussm_jax.ops.s4d import Operator
from diffussm_jax.shapes import Condition, Groups


class Block(nnx.Module):
    """x + Block(modulate(LayerNorm(x), c)); the identity at the start, since W3 begins at zero."""

    def __init__(self, config: ModelConfig, *, apply_s4d: Operator, rngs: nnx.Rngs):
        d, m, dtype = config.width, config.m, jnp.dtype(config.dtype)
        r = 2 if config.direction == "both" else 1
        self.modulation = Modulation(d, 3 if config.gate else 2, dtype=dtype, rngs=rngs)
        self.w0 = linear(d, d, dtype=dtype, rngs=rngs)
        self.w_up = linear(d, m * d, dtype=dtype, rngs=rngs)
        self.ssm = S4D(
            d,
            state_size=config.state_size,
            direction=config.direction,
            dt_range=config.dt_range,
            share=config.share_ssm,
            dt_rate=config.dt_rate,
            apply=apply_s4d,
            rngs=rngs,
        )
        self.w_down = GroupedLinear(m, r * d, 2 * d // m, dtype=dtype, rngs=rngs)
        self.w1 = linear(d, 2 * d, dtype=dtype, rngs=rngs)
        self.w2 = linear(2 * d, 2 * d, dtype=dtype, rngs=rngs)
        self.w3 = linear(2 * d, d, dtype=dtype, rngs=rngs, zero=True)
        self.m = m

    def __call__(self, x: Groups, c: Condition) -> Groups:
        shift, scale, *gate = self.modulation(c)
        i = modulate(x, shift, scale)
        b, j, d = i.shape
        u = jax.nn.gelu(self.w_up(jax.nn.gelu(self.w0(i)))).reshape(b, j * self.m, d)  # b l d
        with jax.named_scope("ssm"):
            y = self.ssm(u).reshape(b, j, self.m, -1)
        i_down = jax.nn.gelu(self.w_down(y)).reshape(b, j, 2 * d)
        o = self.w3(jax.nn.gelu(self.w2(i_down)) * jax.nn.gelu(self.w1(i)))
        return x + (gate[0] * o if gate else o)
