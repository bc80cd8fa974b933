"""FCDM's block as a mixer: depthwise convolution, inverted bottleneck, response normalisation.

Kwon et al., Reviving ConvNeXt for efficient convolutional diffusion models, 2026 (arXiv
2603.09408), after ConvNeXt V2 (Woo et al., 2023, arXiv 2301.00808). FCDM modulates behind the
convolution (`model.modulate_convolved`) and has no second MLP (`model.mlp_ratio` = 0); by default
the modulation of a DiT's block comes before the mixer.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from diffussm_jax.config import ModelConfig
from diffussm_jax.models.layers import ModulateRows, layer_norm, linear
from diffussm_jax.models.mixers.depthwise import Depthwise
from diffussm_jax.ops.depthwise import Convolve
from diffussm_jax.shapes import Grid, Groups, Tokens

KERNEL_SIZE = 7  # ConvNeXt and FCDM
EXPANSION = 3  # of the bottleneck, in FCDM's released models; ConvNeXt has 4
EPSILON = 1e-6


class ConvNeXt(nnx.Module):
    """W_out GRN(gelu(W_widen LayerNorm(K * x))), with GRN as the identity at the start.

    Where `is_modulated_behind`, K convolves the residual stream, and this LayerNorm is modulated.
    """

    def __init__(self, config: ModelConfig, *, convolve: Convolve, rngs: nnx.Rngs):
        d, dtype = config.width, jnp.dtype(config.dtype)
        self.depthwise = Depthwise(
            d,
            config.kernel_size or KERNEL_SIZE,
            init=nnx.initializers.xavier_uniform(),  # FCDM
            has_bias=True,
            convolve=convolve,
            dtype=dtype,
            rngs=rngs,
        )
        self.widen = linear(d, EXPANSION * d, dtype=dtype, rngs=rngs)
        self.norm = GlobalResponseNorm(EXPANSION * d, dtype=dtype)
        self.out = linear(EXPANSION * d, d, dtype=dtype, rngs=rngs)
        self.is_modulated_behind = config.modulate_convolved
        self.dtype = dtype

    def __call__(self, x: Groups, grid: Grid, modulate: ModulateRows) -> Groups:
        if self.is_modulated_behind:
            y = modulate(self._convolve(x, grid))
        else:
            y = layer_norm(self._convolve(modulate(x), grid), dtype=self.dtype)
        hidden = jax.nn.gelu(self.widen(y))
        return self.out(self.norm(hidden))

    def _convolve(self, x: Groups, grid: Grid) -> Groups:
        b, _, d = x.shape
        return self.depthwise(x.reshape(b, *grid, d).astype(self.dtype)).reshape(x.shape)


class GlobalResponseNorm(nnx.Module):
    """x + scale x n + bias; n is a channel's norm over an image, divided by the channels' mean.

    ConvNeXt V2's global response normalisation. Both parameters start at zero.
    """

    def __init__(self, num_channels: int, *, dtype: jnp.dtype):
        self.scale = nnx.Param(jnp.zeros(num_channels))
        self.bias = nnx.Param(jnp.zeros(num_channels))
        self.dtype = dtype

    def __call__(self, x: Tokens) -> Tokens:
        square = jnp.square(x.astype(jnp.float32)).sum(axis=1, keepdims=True)
        response = jnp.sqrt(square + EPSILON**2)  # with a slope where a channel is zero
        response = response / (response.mean(axis=-1, keepdims=True) + EPSILON)
        factor = 1 + self.scale[...] * response
        return x * factor.astype(self.dtype) + self.bias[...].astype(self.dtype)
