"""DiCo's convolutions as a mixer: pointwise, depthwise, and a gate of each channel from its mean.

Ai et al., DiCo: revitalizing ConvNets for scalable and efficient diffusion modeling, 2025 (arXiv
2505.11196). Its block has an MLP of ratio 2 (`model.mlp_ratio`).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from diffussm_jax.config import ModelConfig
from diffussm_jax.models.layers import ModulateRows, linear
from diffussm_jax.models.mixers.depthwise import Depthwise
from diffussm_jax.ops.depthwise import Convolve
from diffussm_jax.shapes import Grid, Groups

KERNEL_SIZE = 3


class DiCo(nnx.Module):
    """W_out (y . sigmoid(W_gate mean of y over all tokens)), where y = gelu(K * W_in x)."""

    def __init__(self, config: ModelConfig, *, convolve: Convolve, rngs: nnx.Rngs):
        d, dtype = config.width, jnp.dtype(config.dtype)
        self.enter = linear(d, d, dtype=dtype, rngs=rngs)
        self.depthwise = Depthwise(
            d,
            config.kernel_size or KERNEL_SIZE,
            init=nnx.initializers.xavier_uniform(),
            has_bias=True,
            convolve=convolve,
            dtype=dtype,
            rngs=rngs,
        )
        self.gate = linear(d, d, dtype=dtype, rngs=rngs)
        self.out = linear(d, d, dtype=dtype, rngs=rngs)

    def __call__(self, x: Groups, grid: Grid, modulate: ModulateRows) -> Groups:
        b, l, d = x.shape
        y = self.depthwise(self.enter(modulate(x)).reshape(b, *grid, d)).reshape(b, l, d)
        y = jax.nn.gelu(y)
        mean = y.astype(jnp.float32).mean(axis=1, keepdims=True).astype(y.dtype)
        return self.out(y * jax.nn.sigmoid(self.gate(mean)))
