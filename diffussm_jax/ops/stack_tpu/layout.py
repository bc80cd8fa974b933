"""The order of a chunk's lanes on channel-major activations, and how rows get there and back.

Token l = m j + k of an image is group j of plane k; an activation u[b, k, c, j] has its groups in
lanes. The chunked form wants T = 128 consecutive tokens of a channel in a row of lanes. In their
own order they would have to be woven lane by lane from m planes. A chunk holds P = T / m groups,
and here its lane n = P k + i, with 0 <= i < P, is
    token(n) = m i + k = m (n mod P) + floor(n / P)
so that a chunk is m runs of P lanes, each a piece of one plane. Lanes 128 q .. 128 q + 127 of the m
planes are the m chunks m q + h, by the transpose of an m x m grid of runs:
    run k of chunk h = run h of plane k
which takes log2 m rounds of a roll and a select, and is its own inverse.

What a chunk's product needs does not mind this order, since the binary digits of token(n) are those
of n rotated by log2 m places:
* exp(p token(n)) is a product over digits, so the tables cost what they cost in the tokens' order;
* the triangle of K[token(n) - token(n')] has lags m (i - i') + k - k'. Its rows of one k' are a
  first row rolled by i' lanes: P rows for each of m circulants (`ssm_tables.first_rows`). A roll
  brings lanes of a neighbouring run in on one side of i = i' alone; lags have one sign on each
  side, so that a triangle needs only the other.

Rows are (chunk, batch) for each channel, and tiles of an activation are (channel, lane) for each
image: a transpose, by loads with a stride from a stage in VMEM. A word of 32 bits moves whole, so
two bfloat16 channels travel together.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from diffussm_jax.ops.pallas_tpu.block import LANES, SUBLANES, ChannelBlock, lane
from diffussm_jax.ops.pallas_tpu.states import steps_of_a_body

ReadTile = Callable[[Any, int, int], Any]  # (q, k, image) -> [c 128]
WriteTile = Callable[[Any, int, int, Any], None]


def stage_shape(block: ChannelBlock) -> jax.ShapeDtypeStruct:
    """The shape of a stage: a row for each plane, tile of lanes, image and word of channels."""
    size = block.num_chunks * block.batch * _num_words(block)
    dtype = jnp.int32 if _channels_per_word(block) > 1 else block.dtype
    return jax.ShapeDtypeStruct((size, LANES), dtype)


def gather(read: ReadTile, rows_ref, stage_ref, block: ChannelBlock, *, num_images: int) -> None:
    """Fill the rows `[c g*b 128]` of a block with the tiles that `read` gives.

    Images beyond `num_images`, which only fill registers, become rows of zeros.
    """

    def stage_tiles(q):
        for k, row in itertools.product(range(block.m), range(block.batch)):
            words = stage_ref.at[_tile(block, q, k, row)]
            part, image = divmod(row, block.rows_of_a_part)
            if image < num_images:
                words[...] = _to_words(read(part * _num_tiles(block) + q, k, image))
            else:
                words[...] = jnp.zeros(words.shape, words.dtype)

    def take_rows(q):
        for word in range(_num_words(block)):
            planes = [stage_ref[_rows_of_word(block, q, k, word)] for k in range(block.m)]
            chunks = jnp.concatenate(transpose_runs(planes), axis=0)
            for c, row in zip(_channels_of(block, word), _split_words(chunks)):
                rows_ref[c, _chunks(block, q)] = row.astype(block.dtype)

    _for_each_tile(block, stage_tiles)
    _for_each_tile(block, take_rows)


def scatter(rows_ref, write: WriteTile, stage_ref, block: ChannelBlock, *, num_images: int) -> None:
    """Hand the rows `[c g*b 128]` of a block to `write` as tiles; the inverse of `gather`."""

    def stage_rows(q):
        for word in range(_num_words(block)):
            rows = [rows_ref[c, _chunks(block, q)] for c in _channels_of(block, word)]
            chunks = jnp.split(_join_words(rows), block.m)
            for k, plane in enumerate(transpose_runs(chunks)):
                stage_ref[_rows_of_word(block, q, k, word)] = plane

    def write_tiles(q):
        for k, row in itertools.product(range(block.m), range(block.batch)):
            part, image = divmod(row, block.rows_of_a_part)
            if image < num_images:
                words = stage_ref[_tile(block, q, k, row)]
                tile = part * _num_tiles(block) + q
                write(tile, k, image, _from_words(words, block.dtype))

    _for_each_tile(block, stage_rows)
    _for_each_tile(block, write_tiles)


def transpose_runs(arrays: list) -> list:
    """Make run h of array k run k of array h, for m arrays whose 128 lanes are m runs.

    Each round exchanges the runs whose numbers differ from their array's in one binary digit.
    """
    arrays = list(arrays)
    distance = 1  # in runs
    while distance < len(arrays):
        num_lanes = distance * LANES // len(arrays)
        stays = (lane(arrays[0].shape) & num_lanes) == 0
        for k in (k for k, _ in enumerate(arrays) if not k & distance):
            near, far = arrays[k], arrays[k + distance]
            arrays[k] = jnp.where(stays, near, pltpu.roll(far, num_lanes, 1))
            arrays[k + distance] = jnp.where(stays, pltpu.roll(near, LANES - num_lanes, 1), far)
        distance *= 2
    return arrays


def _for_each_tile(block: ChannelBlock, body: Callable[[Any], None]) -> None:
    num_tiles = _num_tiles(block)
    unroll = steps_of_a_body(num_tiles)
    jax.lax.fori_loop(0, num_tiles, lambda q, _: body(q), None, unroll=unroll)


def _num_tiles(block: ChannelBlock) -> int:
    return block.num_chunks // block.m


def _channels_per_word(block: ChannelBlock) -> int:
    return 4 // block.dtype.itemsize


def _num_words(block: ChannelBlock) -> int:
    return block.num_channels // _channels_per_word(block)


def _channels_of(block: ChannelBlock, word: int) -> range:
    size = _channels_per_word(block)
    return range(word * size, (word + 1) * size)


def _chunks(block: ChannelBlock, q):
    """The rows of the m chunks of tile q."""
    size = block.m * block.batch
    return pl.ds(pl.multiple_of(q * size, SUBLANES), size)


def _tile(block: ChannelBlock, q, k: int, row: int):
    """The words of a tile in the stage: all channels of a row."""
    num_words = _num_words(block)
    return pl.ds(_first_word(block, q, k) + row * num_words, num_words)


def _rows_of_word(block: ChannelBlock, q, k: int, word: int):
    """One word of channels in the stage, of all images."""
    return pl.ds(_first_word(block, q, k) + word, block.batch, stride=_num_words(block))


def _first_word(block: ChannelBlock, q, k: int):
    return (k * _num_tiles(block) + q) * block.batch * _num_words(block)


def _to_words(tile):
    """Tiles [c 128] as words [c/2 128] if two of their channels fill one."""
    return pltpu.bitcast(tile, jnp.int32) if tile.dtype == jnp.bfloat16 else tile


def _from_words(words, dtype):
    return words if words.dtype == dtype else pltpu.bitcast(words, dtype)


def _split_words(words) -> list:
    """The channels of words as float32, which holds a bfloat16 number in its upper half."""
    if words.dtype == jnp.float32:
        return [words]
    halves = words << 16, words & -(1 << 16)
    return [jax.lax.bitcast_convert_type(half, jnp.float32) for half in halves]


def _join_words(rows: list):
    """The inverse of `_split_words`, of one or two channels in their own dtype."""
    if len(rows) == 1:
        return rows[0]
    low, high = (jax.lax.bitcast_convert_type(row.astype(jnp.float32), jnp.int32) for row in rows)
    return jax.lax.shift_right_logical(low, 16) | high
