"""What the backbones share: tokens in, scans over equal blocks, tokens out.

They differ in the block, and in whether all blocks have one width (`isotropic.Isotropic`) or are in
stages of several (`levels.UShaped`).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffussm_jax.config import ModelConfig
from diffussm_jax.models.layers import ConditionEmbeddings
from diffussm_jax.ops.attention import SAVED_NAME
from diffussm_jax.shapes import Condition, Conditions, Grid, Groups, Images, Labels, Streams

REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_saveable,
        jax.checkpoint_policies.save_only_these_names(SAVED_NAME),
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Stack(NamedTuple):
    """Blocks of one width, one after the other.

    Attributes:
        blocks: their arrays have a leading axis.
        grid: the height and width in tokens that they see.
        first: number of the first layer in the backbone, from 0.
        stage: which stage of a U it is; None is the only stack.
    """

    blocks: nnx.Module
    grid: Grid
    first: int = 0
    stage: int | None = None

    @property
    def num_blocks(self) -> int:
        """The rounds of the loop over the blocks."""
        return len(jax.tree.leaves(self.blocks)[0])

    @property
    def numbers(self) -> range:
        """The numbers of the layers."""
        return range(self.first, self.first + self.num_blocks * len(layers_of(self.blocks)))


# Of (stack, the rows that enter it, the condition) to the rows that leave it.
RunStack = Callable[[Stack, Groups, Condition], Groups]


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
        return self.call_with(self.run_stack, x_t, t, y)

    def call_with(
        self, run: RunStack, x_t: Images, t: Conditions, y: Labels | None = None
    ) -> Float[Array, "b h w o"]:
        """The model's output where `run` runs each stack."""
        raise NotImplementedError

    def stacks(self, grid: Grid) -> tuple[Stack, ...]:
        """The stacks from the first to the last, for images of a height and width in tokens."""
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

    def run_stack(self, stack: Stack, x: Groups, c: Condition) -> Groups:
        """Apply the blocks of a stack one after the other."""
        return self._scan(lambda x, block, _: (block(x, c, stack.grid), None), stack.blocks, x)[0]

    def run_with_streams(
        self, stack: Stack, x: Groups, c: Condition, forced: Streams | None = None
    ) -> tuple[Groups, Streams]:
        """Apply the blocks one after the other, and give x after each layer too.

        Args:
            forced: rows that each layer is also applied to; then these results are the streams.
        """

        def run(x: Groups, block: nnx.Module, forced: Streams | None) -> tuple[Groups, Streams]:
            streams = []
            for index, layer in enumerate(layers_of(block)):
                x = layer(x, c, stack.grid)
                streams.append(x if forced is None else layer(forced[index], c, stack.grid))
            return x, jnp.stack(streams)

        if forced is not None:
            forced = forced.reshape(stack.num_blocks, -1, *forced.shape[1:])
        x, streams = self._scan(run, stack.blocks, x, forced)
        return x, streams.reshape(-1, *streams.shape[2:])

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
