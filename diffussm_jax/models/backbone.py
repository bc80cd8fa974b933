"""What the backbones share: tokens in, scans over equal blocks, tokens out.

They differ in the block, and in whether all blocks have one width (`Isotropic`) or are in stages of
several (`levels.UShaped`).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffussm_jax.config import ModelConfig
from diffussm_jax.models.layers import ConditionEmbeddings, Modulation, linear, modulate
from diffussm_jax.ops.attention import SAVED_NAME
from diffussm_jax.shapes import Condition, Conditions, Grid, Groups, Images, Labels, Streams

REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_saveable,
        jax.checkpoint_policies.save_only_these_names(SAVED_NAME),
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}


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


class Backbone(ConditionEmbeddings):
    """Denoiser of `[b, h, w, in_channels]`, called as model(x_t, t, y).

    t is what the model is told besides: one scalar for each example, [b], or several, [b k].

    Args:
        config: the model section of the run's config.
        conditions: names of the embeddings of t (`ConditionEmbeddings`).
        num_classes: 0 for an unconditional model, which is called with y = None.
        group_size: tokens that become one row of x.
        position: gives the code that is added to the rows, from height and width of the grid in
            tokens; None adds none.
        gather: makes of a device's part of a block the complete block, before it is used.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        conditions: tuple[str, ...],
        num_classes: int,
        group_size: int,
        position: Callable[[int, int], Float[Array, "j d"]] | None,
        gather: Callable[[nnx.Module], nnx.Module] | None,
        rngs: nnx.Rngs,
    ):
        dtype = jnp.dtype(config.dtype)
        super().__init__(conditions, num_classes, width=config.width, dtype=dtype, rngs=rngs)
        self.config = config
        self.group_size = group_size
        self.position = position
        self.gather = gather

    def __call__(
        self, x_t: Images, t: Conditions, y: Labels | None = None
    ) -> Float[Array, "b h w o"]:
        """The model's output."""
        raise NotImplementedError

    def prepare(self, height: int, width: int) -> Callable[..., Float[Array, "b h w o"]]:
        """The model for many calls at one size without gradients.

        What depends on the parameters alone is done here, once for all calls.
        """
        return self

    def rows(self, x_t: Images) -> Float[Array, "b j f"]:
        """The values of an image, row by row of x."""
        return group(x_t, self.config.patch_size, self.group_size).astype(self.config.dtype)

    def with_position(self, x: Groups, grid: Grid) -> Groups:
        """Rows with their position's code, in the dtype of the residual stream."""
        if self.position is not None:
            x = x + self.position(*grid).astype(x.dtype)
        return self.residual(x)

    def residual(self, x: Array) -> Array:
        """x in the dtype of the residual stream."""
        return x.astype(jnp.promote_types(x.dtype, self.config.residual_dtype))

    def token_grid(self, x_t: Images) -> Grid:
        """The height and width of an image in tokens."""
        return x_t.shape[1] // self.config.patch_size, x_t.shape[2] // self.config.patch_size

    def _run(self, blocks: nnx.Module, x: Groups, c: Condition, grid: Grid) -> Groups:
        """Apply stacked blocks one after the other."""
        return self._scan(lambda x, block, _: (block(x, c, grid), None), blocks, x)[0]

    def _scan(
        self,
        run: Callable[[Groups, Any, Any], tuple[Groups, Any]],
        blocks: nnx.Module,
        x: Groups,
        inputs: Any = None,
    ) -> tuple[Groups, Any]:
        """Run stacked blocks in a loop: `run` gets x, a block and its part of the inputs."""

        def step(x: Groups, block_and_input: tuple[nnx.Module, Any]) -> tuple[Groups, Any]:
            block, given = block_and_input
            if self.gather is not None:
                block = self.gather(block)
            return run(x, block, given)

        if self.config.remat != "none":
            # A rolled loop keeps the compiler from merging the recomputation away; an unrolled one
            # needs barriers.
            step = jax.checkpoint(
                step,
                prevent_cse=self.config.scan_unroll > 1,
                policy=REMAT_POLICIES[self.config.remat],
            )
        return jax.lax.scan(step, x, (blocks, inputs), unroll=self.config.scan_unroll)


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
        x, c = self.enter(x_t, t, y)
        x = self.run_blocks(x, c, self.token_grid(x_t), prepared)
        return self.leave(x, c, x_t.shape[1], x_t.shape[2])

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

        return self._run(self.blocks, x, c, grid)

    def run_with_streams(
        self, x: Groups, c: Condition, grid: Grid, forced: Streams | None = None
    ) -> tuple[Groups, Streams]:
        """Apply the blocks one after the other, and give x after each layer too.

        Args:
            forced: rows that each layer is also applied to; then these results are the streams.
        """

        def run(x: Groups, block: nnx.Module, forced: Streams | None) -> tuple[Groups, Streams]:
            streams = []
            for index, layer in enumerate(layers_of(block)):
                x = layer(x, c, grid)
                streams.append(x if forced is None else layer(forced[index], c, grid))
            return x, jnp.stack(streams)

        if forced is not None:
            num_blocks = len(jax.tree.leaves(self.blocks)[0])
            forced = forced.reshape(num_blocks, -1, *forced.shape[1:])
        x, streams = self._scan(run, self.blocks, x, forced)
        return x, streams.reshape(-1, *streams.shape[2:])


def stacked(
    make_block: Callable[[nnx.Rngs], nnx.Module], num: int, *, rngs: nnx.Rngs
) -> nnx.Module:
    """Make a block whose arrays have a leading axis, that of as many layers, for a loop."""
    keys = jax.random.split(rngs.params(), num)
    return jax.vmap(lambda key: make_block(nnx.Rngs(key)))(keys)


def layers_of(block: Any) -> Sequence[Any]:
    """The layers of one round of the loop: a block, or those of a pattern."""
    return getattr(block, "layers", [block])


def group(x: Images, patch_size: int, m: int) -> Float[Array, "b j f"]:
    """Flatten to raster-ordered tokens of patch_size^2 pixels and put m neighbours side by side."""
    b, h, w, c = x.shape
    p = patch_size
    x = x.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, -1, m * p * p * c)


def ungroup(
    x: Float[Array, "b j f"], height: int, width: int, patch_size: int
) -> Float[Array, "b h w o"]:
    """Inverse of `group`."""
    b, p = x.shape[0], patch_size
    x = x.reshape(b, height // p, width // p, p, p, -1).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, height, width, -1)
