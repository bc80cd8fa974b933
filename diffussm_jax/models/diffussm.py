"""DiffuSSM: gated SSM blocks over raster-ordered tokens, no attention (the paper, figure 2)."""

import functools
from typing import Any

from flax import nnx

from diffussm_jax.config import ModelConfig
from diffussm_jax.models.block import Block
from diffussm_jax.models.isotropic import Isotropic
from diffussm_jax.models.layers import sincos2d
from diffussm_jax.ops.s4d import Operator, s4d


class DiffuSSM(Isotropic):
    """The backbone of SSM blocks; `apply_s4d` evaluates their SSM layers."""

    def __init__(
        self, config: ModelConfig, *, apply_s4d: Operator = s4d, rngs: nnx.Rngs, **options: Any
    ):
        code = functools.partial(
            sincos2d, group_size=config.m, num_features=config.width, scale=config.position_scale
        )
        super().__init__(
            config,
            group_size=config.m,
            make_block=lambda rngs: Block(config, apply_s4d=apply_s4d, rngs=rngs),
            num_blocks=config.depth,
            position=code if config.position == "sincos2d" else None,
            rngs=rngs,
            **options,
        )
