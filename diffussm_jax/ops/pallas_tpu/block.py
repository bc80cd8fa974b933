"""A block of channels in VMEM: its sizes and lanes, and the operations that its parts share."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from diffussm_jax.shapes import ceil_div

LANES = 128
HALF = LANES // 2
SUBLANES = 8  # rows of a float32 register


def num_levels(chunk_size: int) -> int:
    """The number of powers exp(p 2^i) that the kernels read: up to exp(p T)."""
    return chunk_size.bit_length()


@dataclasses.dataclass(frozen=True)
class ChannelBlock:
    """Channels whose u is `[c g*b t]`, rows in the order (chunk, batch), states `[c b lanes]`.

    Attributes:
        num_channels: channels c of the block.
        num_chunks: chunks g of the sequence, or of each of its parts.
        batch: rows b of a chunk, a multiple of 8, in the order (part, image).
        chunk_size: tokens t of a chunk.
        dtype: of u and y.
        reverse: for each direction, whether it reads from the end.
        strided_roll: whether the chip can roll each row of a register by one more.
        m: tokens of a group, a power of two. The t / m groups of a chunk lie in the order (k, j):
            lane k t / m + j is token m j + k (`stack_tpu.layout`). 1 is the tokens' own order.
        num_parts: parts of the sequence that are rows of their own, where few images leave room: a
            power of two.
    """

    num_channels: int
    num_chunks: int
    batch: int
    chunk_size: int
    dtype: jnp.dtype
    reverse: tuple[bool, ...]
    strided_roll: bool
    m: int = 1
    num_parts: int = 1

    @property
    def rows_of_a_part(self) -> int:
        """Rows of a chunk that are images of one part."""
        return self.batch // self.num_parts

    @property
    def num_groups(self) -> int:
        """Groups of m tokens in a chunk."""
        return self.chunk_size // self.m

    @property
    def digits(self) -> list[int]:
        """The binary digit of the token's number that each digit of its lane's number is."""
        digits = list(range(num_levels(self.chunk_size) - 1))
        low = num_levels(self.m) - 1
        return digits[low:] + digits[:low]

    def token(self, number):
        """The token of a lane, or of a row of a table: its number in the chunk."""
        if self.m == 1:
            return number
        j, k = number & (self.num_groups - 1), number >> (num_levels(self.num_groups) - 1)
        return self.m * j + k

    @property
    def channels(self) -> range:
        return range(self.num_channels)

    @property
    def num_coarse(self) -> int:
        return self.chunk_size // SUBLANES

    @property
    def num_powers(self) -> int:
        """Rows of the input `powers`: the levels and the gain, rounded up to full registers."""
        return ceil_div(num_levels(self.chunk_size) + 1, SUBLANES) * SUBLANES

    def groups(self, size: int) -> list[range]:
        """The channels, `size` at a time."""
        return [self.channels[i : i + size] for i in self.channels[::size]]

    def of_direction(self, shape: tuple[int, ...], r: int):
        """Mask of the lanes of direction r."""
        width = HALF // len(self.reverse)
        number = lane(shape) & (HALF - 1)
        return (number >= r * width) & (number < (r + 1) * width)

    def backward_lanes(self, shape: tuple[int, ...]):
        """Mask of the lanes that read from the end."""
        if len(set(self.reverse)) == 1:
            return jnp.full(shape, self.reverse[0])
        return self.of_direction(shape, self.reverse.index(True))

    def by_chunk(self, x):
        """Reorder rows `[g*b lanes]` from the recurrence's steps to the chunks."""
        if len(set(self.reverse)) == 1:
            return self.in_order(x, 0)
        return jnp.where(self.backward_lanes(x.shape), self._flip(x), x)

    def in_order(self, x, r: int):
        """Reorder as `by_chunk` does, but right only in the lanes of direction r."""
        return self._flip(x) if self.reverse[r] else x

    def _flip(self, x):
        starts = range(0, x.shape[0], self.batch)[::-1]
        return jnp.concatenate([x[i : i + self.batch] for i in starts], axis=0)


def dot(a, b, contract):
    """Matrix product with float32 sums; float32 operands keep their precision."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        a, b, (contract, ((), ())), precision=precision, preferred_element_type=jnp.float32
    )


def lane(shape):
    """The number of its lane at each place of an array."""
    return jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)


def swap(x):
    """Turn [re | im] into [im | re]."""
    return pltpu.roll(x, HALF, x.ndim - 1)


def expand(x, swapped):
    """Turn a = [re | im] into [re | re] and [-im | im], so that a z = first z + second swap(z)."""
    low = lane(x.shape) < HALF
    return jnp.where(low, x, swapped), jnp.where(low, -swapped, x)


def conjugate(x):
    """Turn [re | im] into [re | -im]."""
    return jnp.where(lane(x.shape) < HALF, x, -x)
