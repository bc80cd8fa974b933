"""The parts of a sequence that are rows of their own: what their recurrences give each other."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from diffussm_jax.ops import pairs
from diffussm_jax.ops.pallas_tpu.block import ChannelBlock


@dataclasses.dataclass(frozen=True)
class Parts:
    """Moves states `[b 128]` between parts; a state here comes with its half-swapped copy.

    Attributes:
        block: the block, whose rows b are (part, image).
        mirrored: whether the parts follow each other against the directions of reading.
    """

    block: ChannelBlock
    mirrored: bool = False

    def entering(self, decays, states, added):
        """The states that enter the parts, channel by channel.

        `decays` are the expanded exp(p T) of a chunk, `states` enter the sequence and are in the
        first rows, `added` are what each part adds. The sum over the parts before takes a round for
        each doubling of their number.
        """
        firsts = [self._at_first(x) for x in states]
        decays = [self._power(decay, self.block.num_chunks) for decay in decays]
        after = [_plus(*of_channel) for of_channel in zip(added, decays, firsts)]
        distance = 1
        while distance < self.block.num_parts:
            moved = [self._ahead(x, distance) for x in after]
            after = [_plus(*of_channel) for of_channel in zip(after, decays, moved)]
            decays = [self._power(decay, 2) for decay in decays]
            distance *= 2
        return tuple(
            tuple(map(jnp.add, first, self._ahead(x, 1))) for first, x in zip(firsts, after)
        )

    def last(self, x):
        """Rows `[b 128]` with those of the part that is read last moved to the front."""
        if self.block.num_parts == 1:
            return x
        backward = self._backward(x.shape)
        return jnp.where(backward, x, pltpu.roll(x, self.block.rows_of_a_part, 0))

    def _at_first(self, x):
        """The first rows in the place of the part that is read first, and zeros."""

        def move(x):
            to_end = pltpu.roll(x, self.block.batch - self.block.rows_of_a_part, 0)
            moved = jnp.where(self._backward(x.shape), to_end, x)
            return jnp.where(self._in_first(x.shape, 1), moved, 0.0)

        return tuple(map(move, x))

    def _ahead(self, x, distance: int):
        """Each part's rows in the place of the part so far ahead, and zeros."""
        shift = distance * self.block.rows_of_a_part

        def move(x):
            up = pltpu.roll(x, self.block.batch - shift, 0)
            moved = jnp.where(self._backward(x.shape), up, pltpu.roll(x, shift, 0))
            return jnp.where(self._in_first(x.shape, distance), 0.0, moved)

        return tuple(map(move, x))

    def _in_first(self, shape, num_parts: int):
        """Mask of the rows of the parts that are read first, so many."""
        row = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
        row = jnp.where(self._backward(shape), shape[0] - 1 - row, row)
        return row < num_parts * self.block.rows_of_a_part

    def _backward(self, shape):
        return self.block.backward_lanes(shape) != self.mirrored

    def _power(self, decay, n: int):
        """An expanded number to the power of n, by squaring."""
        if n == 1:
            return decay
        half = self._power(decay, n // 2)
        whole = pairs.multiply(half, half)
        return pairs.multiply(whole, decay) if n % 2 else whole


def _plus(x, decay, z):
    """x + decay z."""
    re, im = decay
    return x[0] + re * z[0] + im * z[1], x[1] + re * z[1] - im * z[0]
