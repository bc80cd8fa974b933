"""A backbone layer by layer, and the operator that moves information between tokens in each.

Attention's operator is v -> softmax(q k^T / sqrt(f)) v, and S4D's u -> y, the filter. Both are
linear in what they move. What else a mixer does, it does to each token alone. A convolutional mixer
has no such operator: its gates and norms are around and between its convolutions.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffussm_jax.models.backbone import Backbone, Stack, layers_of
from diffussm_jax.models.dit import TransformerBlock
from diffussm_jax.models.layers import modulate
from diffussm_jax.models.mixers.attention import Attention
from diffussm_jax.models.mixers.s4d import S4DMixer
from diffussm_jax.models.s4d import S4D
from diffussm_jax.shapes import Condition, Conditions, Grid, Groups, Images, Labels

Block = Any  # of DiffuSSM, or a TransformerBlock


class Layer(NamedTuple):
    """A block, and where it is.

    Attributes:
        number: from 0, through all stages.
        stack: what it is in.
    """

    number: int
    block: Block
    stack: Stack

    @property
    def grid(self) -> Grid:
        """The height and width in tokens that it sees."""
        return self.stack.grid

    @property
    def width(self) -> int:
        """The features of a row."""
        return self.block.modulation.linear.kernel.shape[0]


Visit = Callable[[Layer, Groups, Condition], None]


class Mixing(NamedTuple):
    """A call of the operator that mixes tokens, whose axis is the second.

    Attributes:
        apply: the operator, linear in what it moves.
        moved: what this call moves.
        scores: the queries and keys of attention, [b l h f]; None of S4D.
    """

    apply: Callable[[Array], Array]
    moved: Array
    scores: tuple[Array, Array] | None = None


def layers(model: Backbone, grid: Grid) -> Iterator[Layer]:
    """The layers of a model one by one, for images of a height and width in tokens."""
    return itertools.chain.from_iterable(map(layers_in, model.stacks(grid)))


def layers_in(stack: Stack) -> Iterator[Layer]:
    """The layers of a stack, whose arrays have a leading axis."""
    numbers = iter(stack.numbers)
    for index in range(stack.num_blocks):
        for block in layers_of(jax.tree.map(lambda p, index=index: p[index], stack.blocks)):
            yield Layer(next(numbers), block, stack)


def walk(
    model: Backbone, x_t: Images, t: Conditions, y: Labels | None, visit: Visit
) -> Float[Array, "b h w o"]:
    """Call `visit(layer, x, c)` with what enters each layer; return the model's output."""

    def run(stack: Stack, x: Groups, c: Condition) -> Groups:
        for layer in layers_in(stack):
            visit(layer, x, c)
            x = apply_block(layer.block, x, c, layer.grid)
        return x

    return model.call_with(run, x_t, t, y)


@jax.jit(static_argnums=3)
def apply_block(block: Block, x: Groups, c: Condition, grid: Grid) -> Groups:
    """Apply a block to rows x."""
    return block(x, c, grid)


def name_of(block: Block) -> str:
    """The name of a block's mixer; DiffuSSM's has none of its own."""
    return block.mixer_name if isinstance(block, TransformerBlock) else "diffussm"


def ssm_of(block: Block) -> S4D | None:
    """The block's state space layer, if it has one."""
    return getattr(block.mixer if isinstance(block, TransformerBlock) else block, "ssm", None)


def mixer_of(block: Block, c: Condition, grid: Grid) -> Callable[[Groups], Groups]:
    """The function from the rows that enter a block to what its mixer makes of them, ungated.

    A block of DiffuSSM is a mixer as a whole: the function is what it adds to the rows.
    """
    if not isinstance(block, TransformerBlock):
        return lambda x: block(x, c, grid) - x
    shift, scale = block.modulation(c)[:2]
    return lambda x: block.mix(x, shift, scale, grid)


def hooked(block: Block, hook: Callable[[Mixing], Array]) -> Block:
    """A copy of a block that calls `hook` in place of its operator, if it has one."""
    block = jax.tree.map(lambda p: p, block)
    ssm = ssm_of(block)
    if isinstance(block, TransformerBlock) and isinstance(block.mixer, Attention):
        attend = block.mixer.attend
        block.mixer.attend = lambda q, k, v: hook(Mixing(lambda v: attend(q, k, v), v, (q, k)))
    elif ssm is not None:
        apply = ssm.apply_s4d
        ssm.apply_s4d = lambda u, ssm, *, direction: hook(
            Mixing(lambda u: apply(u, ssm, direction=direction), u)
        )
    return block


def mixing_of(block: Block, x: Groups, c: Condition, grid: Grid) -> Mixing | None:
    """The operator of a block's mixer as the block calls it on rows x; None without one.

    What an S4D mixer moves is in raster order here, and its result the sum over its scan orders.
    """
    calls: list[Mixing] = []

    def note(mixing: Mixing) -> Array:
        calls.append(mixing)
        return mixing.apply(mixing.moved)

    mixer_of(hooked(block, note), c, grid)(x)
    if not calls or not isinstance(block, TransformerBlock) or calls[0].scores is not None:
        return calls[0] if calls else None
    mixer = block.mixer
    assert isinstance(mixer, S4DMixer)
    shift, scale = block.modulation(c)[:2]
    u, _ = jnp.split(mixer.uz(modulate(x, shift, scale)), 2, axis=-1)
    return Mixing(lambda u: mixer.filter(u, grid), u)
