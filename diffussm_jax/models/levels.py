"""DiT's blocks in the stages of a U, as FCDM and DiCo have theirs.

Kwon et al., Reviving ConvNeXt for efficient convolutional diffusion models, 2026 (arXiv
2603.09408), after DiCo (Ai et al., 2025, arXiv 2505.11196). With `convnext` and the fields of
configs/fcdm256.py it is FCDM.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffussm_jax.config import ModelConfig
from diffussm_jax.models.backbone import Backbone, group, stacked, ungroup
from diffussm_jax.models.dit import block_maker, position_code
from diffussm_jax.models.layers import ConditionEmbeddings, Modulation, linear, modulate
from diffussm_jax.models.mixers import Functions
from diffussm_jax.ops.depthwise import Convolve
from diffussm_jax.shapes import Condition, Conditions, Grid, Groups, Images, Labels

XAVIER = nnx.initializers.xavier_uniform()
# Of the input's layer, whose kernel counts as a matrix, as that of patches does in DiT.
XAVIER_OF_A_MATRIX = nnx.initializers.xavier_uniform(in_axis=(0, 1, 2), out_axis=3)


class UShaped(Backbone):
    """Stages of blocks: down to the middle one, and up again with what the way down left.

    Level 0 is the outermost. Each further level has half the height and width in tokens, twice the
    width and the heads, and embeddings of its own of what the model is told. Rows enter and leave
    by 3 x 3 convolutions of the grid of tokens.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        in_channels: int,
        out_channels: int,
        functions: Functions,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        d, dtype = config.width, jnp.dtype(config.dtype)
        features = config.patch_size**2
        conv = functools.partial(Conv3x3, convolve=functions.convolve, dtype=dtype, rngs=rngs)
        self.embed = conv(features * in_channels, d, init=XAVIER_OF_A_MATRIX)
        code = functools.partial(position_code, num_features=d)
        position = code if config.position == "sincos2d" else None
        super().__init__(config, group_size=1, position=position, rngs=rngs, **options)
        for level in range(1, config.num_levels):
            width = at_level(config, level).width
            embeddings = ConditionEmbeddings(
                self.conditions, self.num_classes, width=width, dtype=dtype, rngs=rngs
            )
            setattr(self, f"level_{level}", embeddings)
        self.blocks = Stages(config, functions=functions, rngs=rngs)
        self.resampling = Resampling(config, convolve=functions.convolve, rngs=rngs)
        self.out = conv(d, d)
        self.modulation = Modulation(d, 2, dtype=dtype, rngs=rngs)
        self.head = conv(d, features * out_channels, init=nnx.initializers.zeros)

    def __call__(
        self, x_t: Images, t: Conditions, y: Labels | None = None
    ) -> Float[Array, "b h w o"]:
        grids = self._grids(x_t)
        with jax.named_scope("embeddings"):
            x = self.with_position(self.embed(self.rows(x_t), grids[0]), grids[0])
            conditions = self._embed_at_levels(t, y)
        resampling: Any = self.resampling
        if self.gather is not None:
            resampling = self.gather(resampling)
        left, level, stages = [], 0, self.blocks.stages
        for index, stage in enumerate(stages):
            is_down, is_up = 0 < index <= len(stages) // 2, index > len(stages) // 2
            if is_down:
                left.append(x)
                level += 1
                x = self.residual(resampling.down(level, x, grids[level - 1]))
            elif is_up:
                x = self.residual(resampling.up(level, x, grids[level], left.pop()))
                level -= 1
            x = self._run(stage, x, conditions[level], grids[level])
        with jax.named_scope("embeddings"):
            x = modulate(self.out(x, grids[0]), *self.modulation(conditions[0]))
            x = self.head(x, grids[0])
        return ungroup(x.astype(jnp.float32), x_t.shape[1], x_t.shape[2], self.config.patch_size)

    def _grids(self, x_t: Images) -> list[Grid]:
        """The height and width in tokens at each level."""
        height, width = self.token_grid(x_t)
        return [(height >> level, width >> level) for level in range(self.config.num_levels)]

    def _embed_at_levels(self, t: Conditions, y: Labels | None) -> list[Condition]:
        levels = [getattr(self, f"level_{level}") for level in range(1, self.config.num_levels)]
        return [embeddings.embed_conditions(t, y) for embeddings in (self, *levels)]


class Stages(nnx.Module):
    """The blocks of each stage, stacked."""

    def __init__(self, config: ModelConfig, *, functions: Functions, rngs: nnx.Rngs):
        assert config.levels is not None
        self.num = len(config.levels)
        for index, depth in enumerate(config.levels):
            level = min(index, self.num - 1 - index)
            make_block = block_maker(at_level(config, level), functions)
            blocks = stacked(make_block, depth // len(config.pattern), rngs=rngs)
            setattr(self, stage_name(index), blocks)

    @property
    def stages(self) -> list[nnx.Module]:
        """The stages, one after the other."""
        return [getattr(self, stage_name(index)) for index in range(self.num)]


class Resampling(nnx.Module):
    """What leads from one level to the next: 3 x 3 convolutions, and pixels moved to channels.

    On the way up, what the level above left on the way down lies beside it, and a dense layer makes
    one of the two.
    """

    def __init__(self, config: ModelConfig, *, convolve: Convolve, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        conv = functools.partial(Conv3x3, convolve=convolve, has_bias=False, dtype=dtype, rngs=rngs)
        for level in range(1, config.num_levels):
            d = at_level(config, level - 1).width
            setattr(self, f"down_{level}", conv(d, d // 2))
            setattr(self, f"up_{level}", conv(2 * d, 4 * d))
            setattr(self, f"merge_{level}", linear(2 * d, d, dtype=dtype, rngs=rngs))

    def down(self, level: int, x: Groups, grid: Grid) -> Float[Array, "b i e"]:
        """The rows of a level from those of the level above, whose grid this is."""
        with jax.named_scope("resampling"):
            y = getattr(self, f"down_{level}")(x, grid)
            return group(y.reshape(y.shape[0], *grid, -1), 2, 1)

    def up(
        self, level: int, x: Groups, grid: Grid, left: Float[Array, "b i e"]
    ) -> Float[Array, "b i e"]:
        """The rows of the level above from those of a level, whose grid this is, and what it left.

        Args:
            left: the rows of the level above on the way down.
        """
        with jax.named_scope("resampling"):
            y = ungroup(getattr(self, f"up_{level}")(x, grid), 2 * grid[0], 2 * grid[1], 2)
            y = y.reshape(left.shape)
            merge = getattr(self, f"merge_{level}")
            return merge(jnp.concatenate([y, left.astype(y.dtype)], axis=-1))


class Conv3x3(nnx.Module):
    """A convolution of rows in raster order, as (rows, grid); beyond the edges there are zeros."""

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        *,
        convolve: Convolve,
        init: nnx.Initializer = XAVIER,
        has_bias: bool = True,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        shape = (3, 3, num_inputs, num_outputs)
        self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(num_outputs)) if has_bias else None
        self.convolve = convolve
        self.dtype = dtype

    def __call__(self, x: Groups, grid: Grid) -> Float[Array, "b j o"]:
        b, j, d = x.shape
        image = x.reshape(b, *grid, d).astype(self.dtype)
        y = self.convolve(image, self.kernel[...].astype(self.dtype)).reshape(b, j, -1)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


def at_level(config: ModelConfig, level: int) -> ModelConfig:
    """The config of a level's blocks: heads are of one width at all levels."""
    factor = 2**level
    return dataclasses.replace(
        config, width=factor * config.width, num_heads=factor * config.num_heads
    )


def stage_name(index: int) -> str:
    """The name of a stage among the parameters of the blocks."""
    return f"stage_{index}"
