"""DiT, the attention baseline: patches through a transformer with adaLN-Zero.

Peebles and Xie, Scalable Diffusion Models with Transformers, 2022 (arXiv 2212.09748).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float32

from diffussm_jax.config import ModelConfig
from diffussm_jax.models.backbone import Backbone
from diffussm_jax.models.layers import Modulation, linear, modulate, sincos2d
from diffussm_jax.ops.attention import Attend
from diffussm_jax.shapes import Condition, Groups

MLP_RATIO = 4  # DiT


class DiT(Backbone):
    """The backbone of transformer blocks.

    Its parameters are those of the released code, except for the position table, which is computed.
    """

    def __init__(self, config: ModelConfig, *, attend: Attend, rngs: nnx.Rngs, **options: Any):
        code = functools.partial(position_code, num_features=config.width)
        super().__init__(
            config,
            group_size=1,
            make_block=lambda rngs: TransformerBlock(config, attend=attend, rngs=rngs),
            position=code if config.position == "sincos2d" else None,
            rngs=rngs,
            **options,
        )


class TransformerBlock(nnx.Module):
    """Attention, then an MLP, each modulated and gated (adaLN-Zero, DiT figure 3).

    The block starts as the identity.
    """

    def __init__(self, config: ModelConfig, *, attend: Attend, rngs: nnx.Rngs):
        d = config.width
        dtype = jnp.dtype(config.dtype)
        self.modulation = Modulation(d, 6, dtype=dtype, rngs=rngs)
        self.qkv = linear(d, 3 * d, dtype=dtype, rngs=rngs)
        self.attention_out = linear(d, d, dtype=dtype, rngs=rngs)
        self.mlp_in = linear(d, MLP_RATIO * d, dtype=dtype, rngs=rngs)
        self.mlp_out = linear(MLP_RATIO * d, d, dtype=dtype, rngs=rngs)
        self.num_heads = config.num_heads
        self.attend = attend

    def __call__(self, x: Groups, c: Condition) -> Groups:
        modulation = self.modulation(c)
        shift, scale, gate = modulation[:3]
        x = x + gate * self._attend(modulate(x, shift, scale))
        shift, scale, gate = modulation[3:]
        hidden = jax.nn.gelu(self.mlp_in(modulate(x, shift, scale)))
        return x + gate * self.mlp_out(hidden)

    def _attend(self, x: Groups) -> Groups:
        b, j, d = x.shape
        parts = jnp.split(self.qkv(x), 3, axis=-1)
        q, k, v = (part.reshape(b, j, self.num_heads, -1) for part in parts)
        with jax.named_scope("attention"):
            y = self.attend(q, k, v)
        return self.attention_out(y.reshape(b, j, d))


def position_code(height: int, width: int, *, num_features: int) -> Float32[Array, "l d"]:
    """The code of `sincos2d` in the released order: column before row, sines before cosines."""
    code = sincos2d(height, width, 1, num_features)
    row_cos, row_sin, column_cos, column_sin = jnp.split(code, 4, axis=-1)
    return jnp.concatenate([column_sin, column_cos, row_sin, row_cos], axis=-1)
