"""DiT: patches through blocks of a mixer and an MLP with adaLN-Zero.

Peebles and Xie, Scalable Diffusion Models with Transformers, 2022 (arXiv 2212.09748). Its mixer is
attention, the baseline; `model.mixer` and `model.mixers` put others in its place.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from diffussm_jax.config import MixerName, ModelConfig
from diffussm_jax.models.isotropic import Isotropic
from diffussm_jax.models.layers import Modulation, linear, modulate, sincos2d
from diffussm_jax.models.mixers import Functions, Mixer, create_mixer
from diffussm_jax.shapes import Condition, Grid, Groups


class DiT(Isotropic):
    """The backbone of such blocks.

    With attention its parameters are those of the released code, except for the position table,
    which is computed.
    """

    def __init__(
        self, config: ModelConfig, *, functions: Functions, rngs: nnx.Rngs, **options: Any
    ):
        code = functools.partial(
            position_code, num_features=config.width, scale=config.position_scale
        )
        super().__init__(
            config,
            group_size=1,
            make_block=block_maker(config, functions),
            num_blocks=config.depth // len(config.pattern),
            position=code if config.position == "sincos2d" else None,
            rngs=rngs,
            **options,
        )


def block_maker(config: ModelConfig, functions: Functions) -> Callable[[nnx.Rngs], nnx.Module]:
    """What makes the body of the loop over layers: a block, or the blocks of a pattern."""
    block = TransformerBlock if len(config.pattern) == 1 else PatternBlock
    return lambda rngs: block(config, functions=functions, rngs=rngs)


class TransformerBlock(nnx.Module):
    """A mixer, then an MLP if there is one, each modulated and gated (adaLN-Zero, DiT figure 3).

    The block starts as the identity. Its mixer's parameters are under the mixer's name.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        functions: Functions,
        mixer_name: MixerName | None = None,
        rngs: nnx.Rngs,
    ):
        d = config.width
        dtype = jnp.dtype(config.dtype)
        self.mixer_name = mixer_name or config.pattern[0]
        self.has_mlp = config.mlp_ratio > 0
        self.modulation = Modulation(d, 6 if self.has_mlp else 3, dtype=dtype, rngs=rngs)
        mixer = create_mixer(self.mixer_name, config, functions=functions, rngs=rngs)
        setattr(self, self.mixer_name, mixer)
        if self.has_mlp:
            self.mlp_in = linear(d, config.mlp_ratio * d, dtype=dtype, rngs=rngs)
            self.mlp_out = linear(config.mlp_ratio * d, d, dtype=dtype, rngs=rngs)

    def __call__(self, x: Groups, c: Condition, grid: Grid) -> Groups:
        modulation = self.modulation(c)
        shift, scale, gate = modulation[:3]
        x = x + gate * self.mix(x, shift, scale, grid)
        if not self.has_mlp:
            return x
        shift, scale, gate = modulation[3:]
        hidden = jax.nn.gelu(self.mlp_in(modulate(x, shift, scale)))
        return x + gate * self.mlp_out(hidden)

    def mix(
        self, x: Groups, shift: Float[Array, "b 1 d"], scale: Float[Array, "b 1 d"], grid: Grid
    ) -> Groups:
        """What the mixer makes of rows x, which it modulates."""
        return self.mixer(x, grid, functools.partial(modulate, shift=shift, scale=scale))

    @property
    def mixer(self) -> Mixer:
        """What mixes the tokens."""
        return getattr(self, self.mixer_name)


class PatternBlock(nnx.Module):
    """The blocks of a pattern of mixers, which the depth repeats."""

    def __init__(self, config: ModelConfig, *, functions: Functions, rngs: nnx.Rngs):
        for index, name in enumerate(config.pattern):
            block = TransformerBlock(config, functions=functions, mixer_name=name, rngs=rngs)
            setattr(self, layer_name(index), block)
        self.num_layers = len(config.pattern)

    def __call__(self, x: Groups, c: Condition, grid: Grid) -> Groups:
        for layer in self.layers:
            x = layer(x, c, grid)
        return x

    @property
    def layers(self) -> list[TransformerBlock]:
        """The blocks, one after the other."""
        return [getattr(self, layer_name(index)) for index in range(self.num_layers)]


def layer_name(index: int) -> str:
    """The name of a layer of a pattern among the parameters."""
    return f"layer_{index}"


def position_code(
    height: int, width: int, *, num_features: int, scale: float | tuple[float, float] = 1.0
) -> Float32[Array, "l d"]:
    """The code of `sincos2d` in the released order: column before row, sines before cosines."""
    code = sincos2d(height, width, 1, num_features, scale=scale)
    row_cos, row_sin, column_cos, column_sin = jnp.split(code, 4, axis=-1)
    return jnp.concatenate([column_sin, column_cos, row_sin, row_cos], axis=-1)
