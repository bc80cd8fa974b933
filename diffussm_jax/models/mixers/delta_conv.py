"""Delta-ConvFusion's mixer: a pyramid of gated depthwise convolutions, and the mean of all tokens.

Dong et al., Can we achieve efficient diffusion without self-attention? Distilling self-attention
into convolutions, 2025 (arXiv 2504.21292). Sizes, and what the paper's drawing leaves open, are
those of the released code: two stages of 13 x 13 kernels without bias, on half of the width.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from diffussm_jax.config import DeltaGate, ModelConfig
from diffussm_jax.models.layers import ModulateRows, linear
from diffussm_jax.models.mixers.depthwise import Depthwise
from diffussm_jax.ops.depthwise import Convolve
from diffussm_jax.shapes import Grid, Groups, Images

KERNEL_SIZE = 13
# The released code's, whose fan-in is that of the array [k, k, c]: kernels so small that the
# released gate's products start near 1.
RELEASED_INIT = nnx.initializers.he_uniform(in_axis=0, out_axis=1)


class DeltaConv(nnx.Module):
    """W_out (stages of W_narrow x, side by side) + W_mean (mean of x over all tokens)."""

    def __init__(self, config: ModelConfig, *, convolve: Convolve, rngs: nnx.Rngs):
        d, dtype = config.width, jnp.dtype(config.dtype)
        is_released = config.delta_gate == "released"
        self.narrow = linear(d, d // 2, dtype=dtype, rngs=rngs)
        for index in range(len(config.pyramid)):
            depthwise = Depthwise(
                d // 2,
                config.kernel_size or KERNEL_SIZE,
                init=RELEASED_INIT if is_released else nnx.initializers.lecun_uniform(),
                has_bias=False,
                convolve=convolve,
                dtype=dtype,
                rngs=rngs,
            )
            setattr(self, f"stage_{index}", depthwise)
        self.out = linear(d // 4 * len(config.pyramid), d, dtype=dtype, rngs=rngs)
        self.mean = linear(d, d, dtype=dtype, rngs=rngs)
        self.pyramid = config.pyramid
        self.gate = config.delta_gate

    def __call__(self, x: Groups, grid: Grid, modulate: ModulateRows) -> Groups:
        x = modulate(x)
        b, l, d = x.shape
        u = self.narrow(x).reshape(b, *grid, d // 2)
        stages = [self._stage(index, u) for index in range(len(self.pyramid))]
        y = self.out(jnp.concatenate(stages, axis=-1)).reshape(b, l, d)
        mean = x.astype(jnp.float32).mean(axis=1, keepdims=True).astype(x.dtype)
        return y + self.mean(mean)

    def _stage(self, index: int, u: Images) -> Float[Array, "b h w e"]:
        """Convolve and gate means of factor x factor tokens, and bring them back to all tokens."""
        factor = self.pyramid[index]
        y = getattr(self, f"stage_{index}")(average_pool(u, factor))
        value, gate = jnp.split(y, 2, axis=-1)
        y = apply_gate(value, gate, self.gate)
        return upsample(y, factor)


def apply_gate(value: Images, gate: Images, kind: DeltaGate) -> Images:
    """Multiply c channels with as many others.

    The paper's scaled simple gate is read as one of scale 1 / sqrt(c), a number that the released
    code computes too. The code then divides by it, and so multiplies by sqrt(c). Its PixArt models
    have a sigmoid.
    """
    match kind:
        case "scaled":
            return value * gate / math.sqrt(gate.shape[-1])
        case "released":
            return value * gate * math.sqrt(gate.shape[-1])
        case "sigmoid":
            return value * jax.nn.sigmoid(gate)


def average_pool(x: Images, factor: int) -> Float[Array, "b i j c"]:
    """The mean of each square of factor x factor tokens."""
    if factor == 1:
        return x
    b, h, w, c = x.shape
    rows = x.reshape(b, h // factor, factor, w, c).astype(jnp.float32).mean(axis=2)
    means = np.kron(np.eye(w // factor), np.ones(factor) / factor)
    return resample_columns(rows.astype(x.dtype), means)


def upsample(x: Images, factor: int) -> Float[Array, "b i j c"]:
    """Interpolate linearly between the centres of squares; beyond the outermost it is flat.

    This is PyTorch's bilinear interpolation without `align_corners`.
    """
    if factor == 1:
        return x
    b, h, w, c = x.shape
    offsets = (np.arange(factor) + 0.5) / factor - 0.5  # from a square's centre, in squares
    columns = (np.arange(w)[:, None] + offsets).clip(0, w - 1).reshape(-1, 1)
    x = resample_columns(x, np.maximum(0, 1 - np.abs(columns - np.arange(w))))
    before = jnp.concatenate([x[:, :1], x[:, :-1]], axis=1)
    after = jnp.concatenate([x[:, 1:], x[:, -1:]], axis=1)
    rows = [x + abs(e) * ((after if e > 0 else before) - x) for e in offsets.tolist()]
    return jnp.stack(rows, axis=2).reshape(b, factor * h, factor * w, c)


def resample_columns(x: Images, weights: Float[np.ndarray, "j w"]) -> Float[Array, "b h j c"]:
    """The products of each row with a matrix.

    Columns of squares as an axis would be shorter to write, but a TPU pads so short an axis, and
    its compiler fuses the copies into the convolutions, which then take several times as long.
    Rows are left to slices, which a mesh that splits them needs no whole image for.
    """
    with jax.named_scope("resampling"):
        y = jnp.einsum(
            "jw,bhwc->bhjc", weights.astype(x.dtype), x, preferred_element_type=jnp.float32
        )
    return y.astype(x.dtype)
