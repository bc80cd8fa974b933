"""Multi-head self-attention, as in DiT and ViT."""

import jax
import jax.numpy as jnp
from flax import nnx

from diffussm_jax.config import ModelConfig
from diffussm_jax.models.layers import ModulateRows, linear
from diffussm_jax.ops.attention import Attend
from diffussm_jax.shapes import Grid, Groups


class Attention(nnx.Module):
    """Each token attends to all tokens, wherever they are; `attend` computes it."""

    def __init__(self, config: ModelConfig, *, attend: Attend, rngs: nnx.Rngs):
        d, dtype = config.width, jnp.dtype(config.dtype)
        self.qkv = linear(d, 3 * d, dtype=dtype, rngs=rngs)
        self.out = linear(d, d, dtype=dtype, rngs=rngs)
        self.num_heads = config.num_heads
        self.attend = attend

    def __call__(self, x: Groups, grid: Grid, modulate: ModulateRows) -> Groups:
        b, j, d = x.shape
        parts = jnp.split(self.qkv(modulate(x)), 3, axis=-1)
        q, k, v = (part.reshape(b, j, self.num_heads, -1) for part in parts)
        with jax.named_scope("attention"):
            y = self.attend(q, k, v)
        return self.out(y.reshape(b, j, d))
