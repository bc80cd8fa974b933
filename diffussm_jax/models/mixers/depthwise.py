"""A layer of depthwise kernels, as the convolutional mixers have it."""

import jax
import jax.numpy as jnp
from flax import nnx

from diffussm_jax.ops.depthwise import Convolve
from diffussm_jax.shapes import Images


class Depthwise(nnx.Module):
    """Convolve each channel with a kernel of its own, which `convolve` computes."""

    def __init__(
        self,
        num_channels: int,
        kernel_size: int,
        *,
        init: nnx.Initializer,
        has_bias: bool,
        convolve: Convolve,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        shape = (kernel_size, kernel_size, 1, num_channels)
        self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(num_channels)) if has_bias else None
        self.convolve = convolve
        self.dtype = dtype

    def __call__(self, x: Images) -> Images:
        with jax.named_scope("convolutions"):
            y = self.convolve(x, self.kernel[...].astype(self.dtype))
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)
