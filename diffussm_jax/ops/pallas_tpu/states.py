"""The recurrence from chunk to chunk inside a kernel, and its transpose.

Step k is chunk k for a forward lane and the k-th from the end for a backward one. The entering
states, and the gradients of what the chunks add, are kept in the order of the steps.

Where the parts of a sequence are rows of their own, a recurrence runs twice: from zero, for what
each part adds to the state, and from the states that then enter the parts.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from diffussm_jax.ops.pallas_tpu.block import LANES, SUBLANES, ChannelBlock, num_levels, swap
from diffussm_jax.ops.pallas_tpu.parts import Parts

MAX_UNROLL = 32  # steps; longer programs take minutes to compile


def steps_of_a_body(num_steps: int) -> int:
    """How many steps of a loop go into its body: a divisor, as the compiler takes no remainder."""
    return max(n for n in range(1, MAX_UNROLL + 1) if num_steps % n == 0)


@dataclasses.dataclass(frozen=True)
class States:
    """The states of a block of channels.

    Attributes:
        block: the block.
        state_ref: the states at the start `[c b lanes]`, zero if None.
        level_ref: the expanded powers; see `tables.Tables`.
    """

    block: ChannelBlock
    state_ref: jax.Ref | None
    level_ref: jax.Ref

    def carry(self, channels, local_ref, entering_ref, last_ref=None):
        """Run x <- exp(p T) x + local for a few channels side by side; keep what enters each chunk.

        Each state goes with its half-swapped copy: the roll of a complex product is then off the
        path from step to step.
        """
        decays = [self._decay(c) for c in channels]
        parts = Parts(self.block)

        def step(k, states):
            new = []
            for c, (x, swapped), (re, im) in zip(channels, states, decays):
                entering_ref[c, self._chunk(k)] = x
                local = self._at_step(local_ref, c, k)
                new_x = (local + re * x) + im * swapped
                new.append((new_x, (swap(local) + re * swapped) - im * x))
            return tuple(new)

        def run(states):
            unroll = steps_of_a_body(self.block.num_chunks)
            return jax.lax.fori_loop(0, self.block.num_chunks, step, states, unroll=unroll)

        states = self._with_swapped(self.state_ref, channels)
        if self.block.num_parts > 1:
            added = run(self._with_swapped(None, channels))
            states = parts.entering(decays, states, added)
        states = run(states)
        if last_ref is not None:
            for c, (x, _) in zip(channels, states):
                last_ref[c] = parts.last(x)

    def carry_adjoint(
        self, channels, d_last_ref, entering_ref, d_entering_ref, d_local_ref, d_state_ref
    ):
        """Run the transpose of `carry`, from the last step to the first.

        Returns for each channel sum x z and sum x swap(z) over steps and batch, where z is the
        gradient of the state x.
        """
        decays = [self._decay(c) for c in channels]
        parts = Parts(self.block, mirrored=True)
        zero = jnp.zeros((self.block.batch, LANES), jnp.float32)

        def step(i, carried):
            k = self.block.num_chunks - 1 - i
            new = []
            for c, (z, swapped, same, crossed), (re, im) in zip(channels, carried, decays):
                d_local_ref[c, self._chunk(k)] = z
                x = entering_ref[c, self._chunk(k)]
                d_entering = self._at_step(d_entering_ref, c, k)
                new_z = (d_entering + re * z) - im * swapped
                new_swapped = (swap(d_entering) + re * swapped) + im * z
                new.append((new_z, new_swapped, same + x * z, crossed + x * swapped))
            return tuple(new)

        def run(states):
            unroll = steps_of_a_body(self.block.num_chunks)
            carried = tuple((*pair, zero, zero) for pair in states)
            return jax.lax.fori_loop(0, self.block.num_chunks, step, carried, unroll=unroll)

        states = self._with_swapped(d_last_ref, channels)
        if self.block.num_parts > 1:
            added = [tuple(pair) for *pair, _, _ in run(self._with_swapped(None, channels))]
            conjugates = [(re, -im) for re, im in decays]
            states = parts.entering(conjugates, states, added)
        carried = run(states)
        if d_state_ref is not None:
            for c, (z, *_) in zip(channels, carried):
                d_state_ref[c] = parts.last(z)
        return [
            tuple(jnp.sum(part, axis=0, keepdims=True) for part in sums) for _, _, *sums in carried
        ]

    def _with_swapped(self, ref, channels):
        if ref is None:
            zero = jnp.zeros((self.block.batch, LANES), jnp.float32)
            return tuple((zero, zero) for _ in channels)
        return tuple((ref[c], swap(ref[c])) for c in channels)

    def _decay(self, c):
        shape = (self.block.batch, LANES)
        row = num_levels(self.block.chunk_size) - 1
        parts = (self.level_ref[c, part, row : row + 1] for part in range(2))
        return tuple(jnp.broadcast_to(part, shape) for part in parts)

    def _chunk(self, k):
        return pl.ds(pl.multiple_of(k * self.block.batch, SUBLANES), self.block.batch)

    def _at_step(self, ref, c, k):
        """The rows that step k reads of an array in the order of the chunks."""
        ahead, behind = self._chunk(k), self._chunk(self.block.num_chunks - 1 - k)
        if len(set(self.block.reverse)) == 1:
            return ref[c, behind if self.block.reverse[0] else ahead]
        return jnp.where(
            self.block.backward_lanes((self.block.batch, LANES)), ref[c, behind], ref[c, ahead]
        )
