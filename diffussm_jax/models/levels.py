"""DiT's blocks in the stages of a U, as FCDM and DiCo have theirs.

Kwon et al., Reviving ConvNeXt for efficient convolutional diffusion models, 2026 (arXiv
2603.09408); Ai et al., DiCo: revitalizing ConvNets for scalable and efficient diffusion modeling,
2025 (arXiv 2505.11196). With the fields of configs/fcdm256.py and configs/dico256.py it is theirs.
"""

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffussm_jax.config import ModelConfig
from diffussm_jax.models.backbone import Backbone, RunStack, Stack, group, stacked, ungroup
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
        code = functools.partial(position_code, num_features=d, scale=config.position_scale)
        position = code if config.position == "sincos2d" else None
        super().__init__(config, group_size=1, position=position, rngs=rngs, **options)
        for level in range(1, config.num_levels):
            embeddings = ConditionEmbeddings(
                self.conditions, self.num_classes, width=2**level * d, dtype=dtype, rngs=rngs
            )
            setattr(self, f"level_{level}", embeddings)
        self.stages = stages_of(config)
        self.blocks = Stages(config, functions=functions, rngs=rngs)
        self.resampling = Resampling(config, convolve=functions.convolve, rngs=rngs)
        last = self.stages[-1].width * d
        self.out = conv(d, d) if config.last_stage == "narrow" else None
        self.modulation = Modulation(last, 2, dtype=dtype, rngs=rngs)
        self.head = conv(last, features * out_channels, init=nnx.initializers.zeros)

    def call_with(
        self, run: RunStack, x_t: Images, t: Conditions, y: Labels | None = None
    ) -> Float[Array, "b h w o"]:
        """The model's output where `run` runs each stage."""
        grid = self.token_grid(x_t)
        with jax.named_scope("embeddings"):
            x = self.with_position(self.embed(self.rows(x_t), grid), grid)
            conditions = self._embed_at_levels(t, y)
        x = self._run_stages(run, x, conditions, grid)
        with jax.named_scope("embeddings"):
            x = x if self.out is None else self.out(x, grid)
            x = modulate(x, *self.modulation(conditions[self.stages[-1].width]))
            x = self.head(x, grid)
        return ungroup(x.astype(jnp.float32), x_t.shape[1], x_t.shape[2], self.config.patch_size)

    def stacks(self, grid: Grid) -> tuple[Stack, ...]:
        """The stages: down to the middle one, and up again."""
        numbers = itertools.accumulate((stage.depth for stage in self.stages), initial=0)
        return tuple(
            Stack(
                getattr(self.blocks, stage_name(index)), at_level(grid, stage.level), first, index
            )
            for index, (stage, first) in enumerate(zip(self.stages, numbers))
        )

    def _run_stages(
        self, run: RunStack, x: Groups, conditions: dict[int, Condition], grid: Grid
    ) -> Array:
        resampling: Any = self.resampling
        if self.gather is not None:
            resampling = self.gather(resampling)
        left, level = [], 0
        for stage, stack in zip(self.stages, self.stacks(grid), strict=True):
            if stage.level > level:
                left.append(x)
                x = self.residual(resampling.down(stage.level, x, at_level(grid, level)))
            elif stage.level < level:
                x = self.residual(resampling.up(level, x, at_level(grid, level), left.pop()))
            level = stage.level
            x = run(stack, x, conditions[stage.width])
        return x

    def _embed_at_levels(self, t: Conditions, y: Labels | None) -> dict[int, Condition]:
        """The condition of each width, in units of the outermost."""
        deeper = [getattr(self, f"level_{level}") for level in range(1, self.config.num_levels)]
        return {2**k: x.embed_conditions(t, y) for k, x in enumerate((self, *deeper))}


class Stage(NamedTuple):
    """Where the blocks of a stage are.

    Attributes:
        level: how often the grid of tokens is halved.
        width: that of its rows and conditions, in units of the outermost.
        depth: blocks, one after the other.
    """

    level: int
    width: int
    depth: int


def stages_of(config: ModelConfig) -> tuple[Stage, ...]:
    """The stages of a config's `levels`, from the first to the last."""
    assert config.levels is not None
    last = len(config.levels) - 1
    levels = [min(index, last - index) for index in range(last + 1)]
    widths = [2**level for level in levels]
    if config.last_stage == "wide":
        widths[last] = 2
    return tuple(map(Stage, levels, widths, config.levels))


def stream_widths(config: ModelConfig) -> list[int]:
    """The width of the rows that each layer leaves."""
    return [config.width * s.width for s in stages_of(config) for _ in range(s.depth)]


class Stages(nnx.Module):
    """The blocks of each stage, stacked."""

    def __init__(self, config: ModelConfig, *, functions: Functions, rngs: nnx.Rngs):
        for index, stage in enumerate(stages_of(config)):
            # Heads are of one width in all stages.
            width, num_heads = stage.width * config.width, stage.width * config.num_heads
            ours = dataclasses.replace(config, width=width, num_heads=num_heads)
            num = stage.depth // len(config.pattern)
            setattr(self, stage_name(index), stacked(block_maker(ours, functions), num, rngs=rngs))


class Resampling(nnx.Module):
    """What leads from one level to the next: 3 x 3 convolutions, and pixels moved to channels.

    On the way up, what the level above left on the way down lies beside it, and a dense layer makes
    one of the two.
    """

    def __init__(self, config: ModelConfig, *, convolve: Convolve, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        conv = functools.partial(Conv3x3, convolve=convolve, has_bias=False, dtype=dtype, rngs=rngs)
        stages = stages_of(config)
        for level in range(1, config.num_levels):
            d = 2 ** (level - 1) * config.width
            merged = stages[-level].width * config.width
            setattr(self, f"down_{level}", conv(d, d // 2))
            setattr(self, f"up_{level}", conv(2 * d, 4 * d))
            setattr(self, f"merge_{level}", linear(2 * d, merged, dtype=dtype, rngs=rngs))

    def down(self, level: int, x: Groups, grid: Grid) -> Float[Array, "b i e"]:
        """The rows of a level from those of the level above, whose grid this is."""
        with jax.named_scope("resampling"):
            y = getattr(self, f"down_{level}")(x, grid)
            return group(y.reshape(y.shape[0], *grid, -1), 2, 1)

    def up(
        self, level: int, x: Groups, grid: Grid, left: Float[Array, "b i e"]
    ) -> Float[Array, "b i o"]:
        """The rows of the level above from those of a level, whose grid this is.

        Args:
            left: the rows of the level above on the way down.
        """
        with jax.named_scope("resampling"):
            y = ungroup(getattr(self, f"up_{level}")(x, grid), 2 * grid[0], 2 * grid[1], 2)
            y = jnp.concatenate([y.reshape(left.shape), left.astype(y.dtype)], axis=-1)
            return getattr(self, f"merge_{level}")(y)


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


def at_level(grid: Grid, level: int) -> Grid:
    """The height and width in tokens at a level, from those of the outermost."""
    return grid[0] >> level, grid[1] >> level


def stage_name(index: int) -> str:
    """The name of a stage among the parameters of the blocks."""
    return f"stage_{index}"
