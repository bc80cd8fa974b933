"""How the SSM's kernels on channel-major activations are cut, for the chip and the shape."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from diffussm_jax.ops.pallas_tpu.block import HALF, LANES, SUBLANES, ChannelBlock
from diffussm_jax.ops.pallas_tpu.tiling import MIN_ROWS, Tiling
from diffussm_jax.shapes import ceil_div

NUM_CHANNELS = 16  # of a grid step: those of a bfloat16 register
GROUP_SIZES = (1, 2, 4, 8)
MAX_ROWS = 512  # of a channel in a step: a minute of compiling; twice as many are 2 % faster
ROWS_OF_TABLES = 64  # whose products take as long as a step's tables
SPILLED = 140 * 1024  # floats that the compiler spills from a channel's tables, or lays out twice


@dataclasses.dataclass(frozen=True)
class SSMShape:
    """Sizes of the activations that an SSM reads.

    Attributes:
        b: images.
        m: tokens of a group.
        d: channels.
        j: groups.
        dtype: of u and y.
        reverse: for each direction, whether it reads from the end.
    """

    b: int
    m: int
    d: int
    j: int
    dtype: Any
    reverse: tuple[bool, ...]


@dataclasses.dataclass(frozen=True)
class Step:
    """What a grid step runs on.

    Attributes:
        block: the channels; their rows are all images of the step, filled up to registers.
        num_images: the images that are there.
        interleave: channels whose recurrences run side by side.
        gelu: whether the SSM reads gelu(u).
    """

    block: ChannelBlock
    num_images: int
    interleave: int
    gelu: bool


def refusal(shape: SSMShape, num_pairs: int, tiling: Tiling) -> str | None:
    """The reason why the kernels cannot run an SSM on these activations, or None if they can."""
    most_pairs = HALF // len(shape.reverse)
    channels = _num_channels(tiling)
    needed = channels * _channel_bytes(shape, 1)
    rules = {
        f"groups of {shape.m} tokens; they take {GROUP_SIZES}": shape.m in GROUP_SIZES,
        f"{shape.j} groups of tokens, no multiple of {LANES}": shape.j % LANES == 0,
        f"{shape.d} channels, no multiple of {channels}": shape.d % channels == 0,
        f"{num_pairs} pairs of poles, more than {most_pairs}": num_pairs <= most_pairs,
        f"chunks of {tiling.chunk_size} tokens, not {LANES}": tiling.chunk_size == LANES,
        f"an image that needs {needed} bytes of VMEM; {tiling.vmem_bytes} are there": (
            needed <= tiling.vmem_bytes
        ),
    }
    return next((reason for reason, holds in rules.items() if not holds), None)


def step_for(shape: SSMShape, tiling: Tiling, *, gelu: bool) -> Step:
    """The step that takes least time for an image."""
    channels = _num_channels(tiling)
    most_rows = max(MAX_ROWS, _num_rows(shape, 1))
    fitting = [
        n
        for n in range(1, shape.b + 1)
        if shape.b % n == 0
        and _num_rows(shape, n) <= most_rows
        and channels * _channel_bytes(shape, n) <= tiling.vmem_bytes
    ]
    num_images = min(fitting, key=lambda n: (_num_rows(shape, n) + ROWS_OF_TABLES) / n)
    batch = _rows_of_a_chunk(num_images)
    block = ChannelBlock(
        num_channels=channels,
        num_chunks=_num_rows(shape, num_images) // batch,
        batch=batch,
        chunk_size=LANES,
        dtype=jnp.dtype(shape.dtype),
        reverse=shape.reverse,
        strided_roll=tiling.strided_roll,
        m=shape.m,
        num_parts=_num_parts(shape, num_images),
    )
    interleave = tiling.interleave or min(channels, max(1, MIN_ROWS // batch))
    return Step(block, num_images, interleave, gelu)


def _num_channels(tiling: Tiling) -> int:
    return tiling.channels or NUM_CHANNELS


def _channel_bytes(shape: SSMShape, num_images: int) -> int:
    """VMEM of a channel in a step of the backward kernel, with a tenth to spare."""
    r, itemsize = len(shape.reverse), jnp.dtype(shape.dtype).itemsize
    rows = _num_rows(shape, num_images)
    # u, du and dy twice, since a block is read while another is used.
    blocks = 2 * (2 + r) * num_images * shape.m * shape.j * itemsize
    blocks += (2 + r + 1) * rows * LANES * itemsize  # they as rows, and the stage
    floats = 3 * rows * LANES + r * LANES * LANES + 2 * LANES * LANES
    floats += 256 * LANES + SPILLED  # powers and small outputs, spilled tables
    return int(1.1 * (blocks + 4 * floats))


def _num_rows(shape: SSMShape, num_images: int) -> int:
    """Rows of a channel: a chunk of tokens is in each."""
    num_chunks = shape.m * shape.j // LANES
    return _rows_of_a_chunk(num_images) * num_chunks // _num_parts(shape, num_images)


def _num_parts(shape: SSMShape, num_images: int) -> int:
    """Into how many parts a sequence goes, so that few images fill the rows of a register."""
    num_tiles = shape.j // LANES
    fitting = (n for n in (8, 4, 2) if n * num_images <= SUBLANES and num_tiles % n == 0)
    return next(fitting, 1)


def _rows_of_a_chunk(num_images: int) -> int:
    return ceil_div(num_images, SUBLANES) * SUBLANES
