"""The gated bidirectional SSM block with its hourglass (the paper, figure 2)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffussm_jax.config import ModelConfig
from diffussm_jax.models.layers import GroupedLinear, Modulation, linear, modulate
from diffussm_jax.models.s4d import S4D
from diffussm_jax.ops.s4d import DIRECTIONS, Operator
from diffussm_jax.shapes import Condition, Grid, Groups, Tokens

gelu = jax.nn.gelu


class Block(nnx.Module):
    """One residual block, by the equations of docs/architecture.md.

    It starts as the identity, since W3 begins at zero.
    """

    def __init__(self, config: ModelConfig, *, apply_s4d: Operator, rngs: nnx.Rngs):
        d = config.width
        m = config.m
        r = len(DIRECTIONS[config.direction])
        dtype = jnp.dtype(config.dtype)
        self.modulation = Modulation(d, 3 if config.gate else 2, dtype=dtype, rngs=rngs)
        self.w0 = linear(d, d, dtype=dtype, rngs=rngs)
        self.w_up = linear(d, m * d, dtype=dtype, rngs=rngs)
        self.ssm = S4D(config, apply_s4d=apply_s4d, rngs=rngs)
        self.w_down = GroupedLinear(m, r * d, 2 * d // m, dtype=dtype, rngs=rngs)
        self.w1 = linear(d, 2 * d, dtype=dtype, rngs=rngs)
        self.w2 = linear(2 * d, 2 * d, dtype=dtype, rngs=rngs)
        self.w3 = linear(2 * d, d, dtype=dtype, rngs=rngs, zero=True)
        self.m = m

    def __call__(self, x: Groups, c: Condition, grid: Grid | None = None) -> Groups:
        """Apply the block to rows x; the SSM sees a sequence, and reads no grid."""
        shift, scale, *gate = self.modulation(c)
        i = modulate(x, shift, scale)  # b j d
        u = split(gelu(self.w_up(gelu(self.w0(i)))), self.m)  # b l d
        with jax.named_scope("ssm"):
            y = self.ssm(u)  # b l e
        i_down = join(gelu(self.w_down(y)))  # b j 2*d
        o = self.w3(gelu(self.w2(i_down)) * gelu(self.w1(i)))  # b j d
        return x + (gate[0] * o if gate else o)


def split(x: Float[Array, "b j f"], m: int) -> Tokens:
    """Split the features of each group among its m tokens, l = j m + k."""
    b, j, f = x.shape
    return x.reshape(b, j * m, f // m)


def join(x: Float[Array, "b j m o"]) -> Float[Array, "b j f"]:
    """Concatenate the features of the m tokens of each group."""
    return x.reshape(*x.shape[:2], -1)
