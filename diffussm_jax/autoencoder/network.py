"""The KL autoencoder of Stable Diffusion (Rombach et al. 2022): images to latents and back.

The published one halves height and width three times. Attributes have the names of the published
weights, so that a parameter's path in the network is its key in their file (weights.py).
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

# Images, latents and the maps between them, of any height, width and number of channels.
Maps = Float[Array, "b _ _ _"]

NORM_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class AutoencoderKLConfig:
    """The fields of a published `config.json` that shape the network.

    The defaults are those of Stable Diffusion's f8 model.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215  # latents are multiplied by it, to unit variance

    @property
    def factor(self) -> int:
        """Pixels per latent position and side."""
        return 2 ** (len(self.block_out_channels) - 1)  # each level but the last halves the side

    @property
    def decoder_reach(self) -> int:
        """Latent positions on each side that convolutions bring into a pixel, rounded up.

        Attention and the norms of groups see all positions, wherever they are.
        """
        levels = range(len(self.block_out_channels))
        residual_blocks = sum(2 * (self.layers_per_block + 1) / 2**level for level in levels)
        upsamplers = sum(1 / 2**level for level in levels[1:])
        ends = 1 + 4 + 1 / self.factor  # conv_in, mid_block, conv_out
        return math.ceil(ends + residual_blocks + upsamplers)


@dataclasses.dataclass(frozen=True)
class _Factory:
    """Makes layers with the settings that all of them share."""

    num_groups: int
    dtype: jnp.dtype
    rngs: nnx.Rngs

    def conv(self, before: int, width: int, size: int = 3, **options: Any) -> nnx.Conv:
        return nnx.Conv(before, width, (size, size), dtype=self.dtype, rngs=self.rngs, **options)

    def linear(self, width: int) -> nnx.Linear:
        return nnx.Linear(width, width, dtype=self.dtype, rngs=self.rngs)

    def norm(self, width: int) -> nnx.GroupNorm:
        return nnx.GroupNorm(
            width, self.num_groups, epsilon=NORM_EPSILON, dtype=self.dtype, rngs=self.rngs
        )


class AutoencoderKL(nnx.Module):
    """The network: its parameters are float32, and `dtype` is the type of its activations."""

    def __init__(self, config: AutoencoderKLConfig, *, dtype: str = "float32", rngs: nnx.Rngs):
        make = _Factory(config.norm_num_groups, jnp.dtype(dtype), rngs)
        z = config.latent_channels
        self.encoder = Encoder(config, make)
        self.quant_conv = make.conv(2 * z, 2 * z, 1)
        self.post_quant_conv = make.conv(z, z, 1)
        self.decoder = Decoder(config, make)
        self.config = config

    def encode(self, images: Maps) -> tuple[Maps, Maps]:
        """Encode images in [-1, 1] to the mean and standard deviation of their latents.

        Both are float32 [b h/f w/f z] and not multiplied by `scaling_factor`.
        """
        moments = self.quant_conv(self.encoder(images)).astype(jnp.float32)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.exp(0.5 * jnp.clip(log_variance, -30, 20))

    def decode(self, latents: Maps, *, slice_size: int | None = None) -> Maps:
        """Decode latents, scaled as `encode` returns them, to float32 images in about [-1, 1].

        With `slice_size`, that many images are decoded at a time, which bounds the memory of the
        activations.
        """
        if slice_size is not None:
            one = functools.partial(jnp.squeeze, axis=0)
            return jax.lax.map(lambda z: one(self.decode(z[None])), latents, batch_size=slice_size)
        return self.decoder(self.post_quant_conv(latents)).astype(jnp.float32)


class Encoder(nnx.Module):
    """Images to the mean and the log-variance of their latents, as channels of one map."""

    def __init__(self, config: AutoencoderKLConfig, make: _Factory):
        channels = config.block_out_channels
        self.conv_in = make.conv(config.in_channels, channels[0])
        self.down_blocks = nnx.List(
            DownBlock(before, width, config.layers_per_block, make, halve=level < len(channels) - 1)
            for level, (before, width) in enumerate(zip((channels[0], *channels), channels))
        )
        self.mid_block = MidBlock(channels[-1], make)
        self.conv_norm_out = make.norm(channels[-1])
        self.conv_out = make.conv(channels[-1], 2 * config.latent_channels)

    def __call__(self, x: Maps) -> Maps:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nnx.Module):
    """Latents to images."""

    def __init__(self, config: AutoencoderKLConfig, make: _Factory):
        channels = config.block_out_channels[::-1]
        self.conv_in = make.conv(config.latent_channels, channels[0])
        self.mid_block = MidBlock(channels[0], make)
        self.up_blocks = nnx.List(
            UpBlock(
                before, width, config.layers_per_block + 1, make, double=level < len(channels) - 1
            )
            for level, (before, width) in enumerate(zip((channels[0], *channels), channels))
        )
        self.conv_norm_out = make.norm(channels[-1])
        self.conv_out = make.conv(channels[-1], config.out_channels)

    def __call__(self, x: Maps) -> Maps:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(x)))


class DownBlock(nnx.Module):
    """Residual blocks of one width, after which the side may halve."""

    def __init__(self, before: int, width: int, depth: int, make: _Factory, *, halve: bool):
        self.resnets = nnx.List(_resnets(before, width, depth, make))
        self.downsamplers = nnx.List([Downsample(width, make)] if halve else [])

    def __call__(self, x: Maps) -> Maps:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UpBlock(nnx.Module):
    """Residual blocks of one width, after which the side may double."""

    def __init__(self, before: int, width: int, depth: int, make: _Factory, *, double: bool):
        self.resnets = nnx.List(_resnets(before, width, depth, make))
        self.upsamplers = nnx.List([Upsample(width, make)] if double else [])

    def __call__(self, x: Maps) -> Maps:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class MidBlock(nnx.Module):
    """Attention between two residual blocks, at the smallest side."""

    def __init__(self, width: int, make: _Factory):
        self.resnets = nnx.List(_resnets(width, width, 2, make))
        self.attentions = nnx.List([Attention(width, make)])

    def __call__(self, x: Maps) -> Maps:
        first, second = self.resnets
        return second(self.attentions[0](first(x)))


class ResnetBlock(nnx.Module):
    """Two convolutions, each after a group norm and SiLU, with a 1x1 shortcut to a new width."""

    def __init__(self, before: int, width: int, make: _Factory):
        self.norm1 = make.norm(before)
        self.conv1 = make.conv(before, width)
        self.norm2 = make.norm(width)
        self.conv2 = make.conv(width, width)
        self.conv_shortcut = None if before == width else make.conv(before, width, 1)

    def __call__(self, x: Maps) -> Maps:
        residual = x if self.conv_shortcut is None else self.conv_shortcut(x)
        x = self.conv1(nnx.silu(self.norm1(x)))
        return residual + self.conv2(nnx.silu(self.norm2(x)))


class Attention(nnx.Module):
    """Attention with one head over all positions."""

    def __init__(self, width: int, make: _Factory):
        self.group_norm = make.norm(width)
        self.to_q, self.to_k, self.to_v = (make.linear(width) for _ in range(3))
        self.to_out = nnx.List([make.linear(width)])

    def __call__(self, x: Maps) -> Maps:
        b, h, w, c = x.shape
        tokens = self.group_norm(x).reshape(b, h * w, 1, c)
        y = jax.nn.dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        return x + self.to_out[0](y).reshape(x.shape)


class Downsample(nnx.Module):
    """A convolution of stride 2, padded on the right and below only."""

    def __init__(self, width: int, make: _Factory):
        self.conv = make.conv(width, width, strides=2, padding=((0, 1), (0, 1)))

    def __call__(self, x: Maps) -> Maps:
        return self.conv(x)


class Upsample(nnx.Module):
    """A convolution of the map with each pixel repeated along both sides."""

    def __init__(self, width: int, make: _Factory):
        self.conv = make.conv(width, width)

    def __call__(self, x: Maps) -> Maps:
        return self.conv(x.repeat(2, axis=1).repeat(2, axis=2))


def _resnets(before: int, width: int, depth: int, make: _Factory) -> list[ResnetBlock]:
    return [ResnetBlock(before if i == 0 else width, width, make) for i in range(depth)]
