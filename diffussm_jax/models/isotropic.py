"""The backbone of one stack of equal blocks, all at one width, as the paper and DiT have it."""

import functools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffussm_jax.config import ModelConfig
from diffussm_jax.models.backbone import Backbone, RunStack, Stack, stacked, ungroup
from diffussm_jax.models.layers import Modulation, linear, modulate
from diffussm_jax.shapes import Condition, Conditions, Grid, Groups, Images, Labels


@runtime_checkable
class FusedBlocks(Protocol):
    """All blocks of a model as one operation."""

    def run(self, blocks: Any, x: Groups, c: Condition) -> Groups:
        """Apply blocks, whose arrays have a leading layer axis, one after the other to x."""
        ...

    def prepare(self, blocks: Any) -> Any:
        """What `run_prepared` reads; it depends on the blocks alone."""
        ...

    def run_prepared(self, prepared: Any, x: Groups, c: Condition) -> Groups:
        """The values of `run`, without gradients."""
        ...


Fuse = Callable[[int], FusedBlocks | None]


class Isotropic(Backbone):
    """The backbone of one stack of equal blocks, all at one width.

    Args:
        config: the model section of the run's config.
        in_channels: channels of the image or latent.
        out_channels: channels of the output; twice `in_channels` where the variance is learned.
        group_size: tokens that become one row of x.
        make_block: makes a block, called as block(x, c, grid) with the height and width of the grid
            of tokens, from the random keys of its parameters.
        num_blocks: blocks, one after the other.
        fuse: finds for a number of rows what runs all blocks at once, or None for a loop over them.
        **options: those of `Backbone`.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        in_channels: int,
        out_channels: int,
        group_size: int,
        make_block: Callable[[nnx.Rngs], nnx.Module],
        num_blocks: int,
        fuse: Fuse = lambda num_rows: None,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        d = config.width
        dtype = jnp.dtype(config.dtype)
        features = group_size * config.patch_size**2
        self.embed = linear(features * in_channels, d, dtype=dtype, rngs=rngs)
        super().__init__(config, group_size=group_size, rngs=rngs, **options)
        self.blocks = stacked(make_block, num_blocks, rngs=rngs)
        self.modulation = Modulation(d, 2, dtype=dtype, rngs=rngs)
        self.head = linear(d, features * out_channels, dtype=dtype, rngs=rngs, zero=True)
        self.fuse = fuse

    def __call__(
        self, x_t: Images, t: Conditions, y: Labels | None = None, *, prepared: Any = None
    ) -> Float[Array, "b h w o"]:
        """The model's output; `prepared` is what `prepare` made of the blocks."""
        return self.call_with(
            lambda stack, x, c: self.run_blocks(x, c, stack.grid, prepared), x_t, t, y
        )

    def call_with(
        self, run: RunStack, x_t: Images, t: Conditions, y: Labels | None = None
    ) -> Float[Array, "b h w o"]:
        """The model's output where `run` runs the stack."""
        x, c = self.enter(x_t, t, y)
        (stack,) = self.stacks(self.token_grid(x_t))
        return self.leave(run(stack, x, c), c, x_t.shape[1], x_t.shape[2])

    def stacks(self, grid: Grid) -> tuple[Stack, ...]:
        """The one stack."""
        return (Stack(self.blocks, grid),)

    def enter(
        self, x_t: Images, t: Conditions, y: Labels | None = None
    ) -> tuple[Groups, Condition]:
        """The rows that the first block reads, and the condition of all blocks."""
        with jax.named_scope("embeddings"):
            x = self.with_position(self.embed(self.rows(x_t)), self.token_grid(x_t))
            return x, self.embed_conditions(t, y)

    def leave(self, x: Groups, c: Condition, height: int, width: int) -> Float[Array, "b h w o"]:
        """The model's output from the rows that the last block wrote."""
        with jax.named_scope("embeddings"):
            x = self.head(modulate(x, *self.modulation(c)))
        return ungroup(x.astype(jnp.float32), height, width, self.config.patch_size)

    def prepare(self, height: int, width: int) -> Callable[..., Float[Array, "b h w o"]]:
        """The model for many calls at one size, with the blocks laid out once for all of them."""
        fused = self.fuse(height * width // self.config.patch_size**2 // self.group_size)
        if fused is None:
            return self
        return functools.partial(self.__call__, prepared=fused.prepare(self.blocks))

    def run_blocks(self, x: Groups, c: Condition, grid: Grid, prepared: Any = None) -> Groups:
        """Apply the blocks one after the other to rows x."""
        fused = self.fuse(x.shape[1])
        if fused is not None and prepared is not None:
            return fused.run_prepared(prepared, x, c)
        if fused is not None:
            return fused.run(self.blocks, x, c)
        return self.run_stack(Stack(self.blocks, grid), x, c)
