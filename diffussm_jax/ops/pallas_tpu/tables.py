"""The tables that multiply a chunk, formed inside a kernel from exp(p 2^i), and their gradients."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from diffussm_jax.ops.pallas_tpu.block import (
    HALF,
    LANES,
    SUBLANES,
    ChannelBlock,
    conjugate,
    expand,
    lane,
    swap,
)

# Entries of the scratch of fine powers; a half-swapped copy follows each of the first two.
FALLING, READING, RISING, NUM_FINE = 0, 2, 4, 5


class Moments(NamedTuple):
    """Sums over the rows t of a table's gradient V against the powers P that made the table."""

    zeroth: Any  # sum V P
    first: Any  # sum t V P


@dataclasses.dataclass(frozen=True)
class Tables:
    """The tables of a block of channels.

    Attributes:
        block: the block.
        powers_ref: input `[c k lanes]`: exp(p 2^i), then 2 g.
        level_ref: scratch `[c 2 k lanes]`: the powers expanded to [re | re] and [-im | im].
        coarse_ref: scratch `[c 2 t/8 lanes]`: every eighth power, expanded.
        fine_ref: scratch `[c 5 8 lanes]`: the first eight powers of each table.
    """

    block: ChannelBlock
    powers_ref: jax.Ref
    level_ref: jax.Ref
    coarse_ref: jax.Ref
    fine_ref: jax.Ref

    def form_powers(self):
        """Fill the scratch of the powers.

        One operation goes over all channels before the next begins: a roll takes a hundred cycles,
        and only independent work fills them.
        """
        levels = self.block.digits
        powers = [self.powers_ref[c] for c in self.block.channels]
        for c, swapped in enumerate([swap(x) for x in powers]):
            self.level_ref[c, 0], self.level_ref[c, 1] = expand(powers[c], swapped)
        rising = self._products(levels[:3], SUBLANES, mirrored=False)
        falling = self._products(levels[:3], SUBLANES, mirrored=True)
        coarse = self._products(levels[3:], self.block.num_coarse, mirrored=False)
        for c in self.block.channels:
            self.fine_ref[c, RISING] = rising[c][0]
            self.fine_ref[c, FALLING], self.fine_ref[c, FALLING + 1] = falling[c]
            reading = self._times(c, 0, self._times(c, len(levels) + 1, rising[c]))
            z, swapped = (conjugate(part) for part in reading)
            self.fine_ref[c, READING], self.fine_ref[c, READING + 1] = z, swapped
            self.coarse_ref[c, 0], self.coarse_ref[c, 1] = expand(*coarse[c])

    def _products(self, levels: list[int], num_rows: int, *, mirrored: bool):
        """For each channel the powers whose bits are the row's number.

        Lanes that run backward count the rows from the end. Each power comes with its half-swapped
        copy, which spares a complex product its roll.
        """
        shape = (num_rows, LANES)
        row = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
        row = jnp.where(self.block.backward_lanes(shape) != mirrored, num_rows - 1 - row, row)
        low = lane(shape) < HALF
        one = jnp.where(low, 1.0, 0.0), jnp.where(low, 0.0, 1.0)
        products = [one for _ in self.block.channels]
        for bit, level in enumerate(levels):
            taken = (row & (1 << bit)) != 0
            times = [self._times(c, level, products[c]) for c in self.block.channels]
            products = [
                (jnp.where(taken, new[0], old[0]), jnp.where(taken, new[1], old[1]))
                for new, old in zip(times, products)
            ]
        return products

    def _times(self, c, row: int, z):
        """The product of z, which comes with its half-swapped copy, and a row of the powers."""
        re, im = (self.level_ref[c, part, row : row + 1] for part in range(2))
        return re * z[0] + im * z[1], re * z[1] - im * z[0]

    def _table(self, c, fine: int, *, descending: bool):
        z, swapped = self.fine_ref[c, fine], self.fine_ref[c, fine + 1]
        re, im = self.coarse_ref.at[c, 0], self.coarse_ref.at[c, 1]
        rows = range(self.block.num_coarse)[:: -1 if descending else 1]
        blocks = [re[i : i + 1] * z + im[i : i + 1] * swapped for i in rows]
        return jnp.concatenate(blocks, axis=0)

    def falling(self, c):
        """The table [t lanes] of what token t adds to the state that leaves its chunk."""
        return self._table(c, FALLING, descending=True).astype(self.block.dtype)

    def reading(self, c):
        """The table [t lanes] of 2 g exp(p) rising.

        It is conjugate, so that its real product with the state is the real part of the complex
        one.
        """
        return self._table(c, READING, descending=False)

    def only(self, table, r: int):
        """The table with the lanes of the other directions zero, as an operand."""
        if len(self.block.reverse) > 1:
            table = jnp.where(self.block.of_direction(table.shape, r), table, 0.0)
        return table.astype(self.block.dtype)

    def by_direction(self, parts: list):
        """Take the lanes of direction r from parts[r]."""
        merged = parts[0]
        for r, part in enumerate(parts[1:], start=1):
            merged = jnp.where(self.block.of_direction(part.shape, r), part, merged)
        return merged

    def toeplitz(self, first_rows, *, backward: bool):
        """The matrix [s t] of K[t - s] where token s comes no later than token t, else zero.

        For a backward pass it is K[s - t] where s comes no earlier than t. `first_rows` [m t] are
        the rows of the first m tokens s = k. Those of the tokens m j + k follow in the order of j,
        each the row above rolled by one.
        """
        t = self.block.chunk_size
        rolled = [self._rolled(first_rows[k : k + 1]) for k in range(self.block.m)]
        rows = jnp.concatenate(rolled, axis=0)
        keep = self._in_triangle((t, t), 0, backward=backward)
        return jnp.where(keep, rows, 0.0).astype(self.block.dtype)

    def _rolled(self, row):
        """A row for each group of a chunk: the given one rolled by 0, 1, 2, ... lanes.

        Without a strided roll only eight rows are made one by one; the others are these eight,
        rolled by full registers.
        """
        shape = (self.block.num_groups, row.shape[1])
        if self.block.strided_roll:
            return pltpu.roll(jnp.broadcast_to(row, shape), 0, 1, stride=1, stride_axis=0)
        (eight,) = self._skew([jnp.broadcast_to(row, (SUBLANES, row.shape[1]))], 1)
        shifts = range(SUBLANES, shape[0], SUBLANES)
        return jnp.concatenate([eight, *(pltpu.roll(eight, n, 1) for n in shifts)], axis=0)

    def sum_diagonals(self, d_within_ref, d_kernel_ref):
        """Apply the transpose of `toeplitz` to the gradients of its matrices."""
        totals = [
            self._unrolled(d_within_ref.at[c, r], k, backward=backward)
            for c in self.block.channels
            for r, backward in enumerate(self.block.reverse)
            for k in range(self.block.m)
        ]
        for n, rows in enumerate(self._skew(totals, -1)):
            c, row = divmod(n, len(self.block.reverse) * self.block.m)
            d_kernel_ref[c, row : row + 1] = jnp.sum(rows, axis=0, keepdims=True)

    def _unrolled(self, d_within_ref, k: int, *, backward: bool):
        """Sum the rows of the tokens m j + k to eight, the rolls by multiples of eight undone."""
        total = jnp.zeros((SUBLANES, self.block.chunk_size), jnp.float32)
        for shift in range(0, self.block.num_groups, SUBLANES):
            first = k * self.block.num_groups + shift
            keep = self._in_triangle(total.shape, first, backward=backward)
            rows = jnp.where(keep, d_within_ref[first : first + SUBLANES], 0.0)
            if shift:
                rows = pltpu.roll(rows, self.block.chunk_size - shift, 1)
            total += rows
        return total

    def _skew(self, arrays: list, step: int) -> list:
        """Roll row q of each array by q steps, one bit of q after the other."""
        row = jax.lax.broadcasted_iota(jnp.int32, arrays[0].shape, 0)
        for bit in (1, 2, 4):
            shift = step * bit % self.block.chunk_size
            rolled = [pltpu.roll(x, shift, 1) for x in arrays]
            taken = (row & bit) != 0
            arrays = [jnp.where(taken, new, old) for new, old in zip(rolled, arrays)]
        return arrays

    def _in_triangle(self, shape, first_row: int, *, backward: bool):
        # first_row + row has the tokens of both added, since they share no binary digit.
        row = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
        lag = self.block.token(lane(shape)) - self.block.token(row)
        first_token = self.block.token(first_row)
        return lag <= first_token if backward else lag >= first_token

    def sum_moments(self, d_tables_ref, sums_ref):
        """Write the moments of the gradients of the two tables, `falling` and `reading`.

        The sums go in two levels: with the coarse powers over blocks of eight rows, then with the
        fine ones. P is conj(falling) for `falling`; for `reading`, which holds conjugates, it is
        rising. The eight rows of a block are m tokens apart.
        """
        for table, fine, sign in ((0, FALLING, 1), (1, RISING, -1)):
            coarse = [
                self._coarse_moments(c, d_tables_ref.at[c, table], sign)
                for c in self.block.channels
            ]
            swapped_im = [Moments(*map(swap, im)) for _, im in coarse]
            # V times the coarse powers or their conjugates, for each of the eight rows of a block.
            by_row = [
                Moments(re.zeroth + sign * im.zeroth, re.first + sign * im.first)
                for (re, _), im in zip(coarse, swapped_im)
            ]
            row = jax.lax.broadcasted_iota(jnp.int32, (SUBLANES, LANES), 0)
            token = (self.block.m * row).astype(jnp.float32)
            by_row = [Moments(z.zeroth, z.first + token * z.zeroth) for z in by_row]
            powers = [self.fine_ref[c, fine] for c in self.block.channels]
            if sign > 0:
                powers = [conjugate(x) for x in powers]
            powers = [expand(x, swap(x)) for x in powers]
            swapped = [Moments(*map(swap, z)) for z in by_row]
            for c, (re, im) in enumerate(powers):
                for order, (z, z_swapped) in enumerate(zip(by_row[c], swapped[c])):
                    moment = jnp.sum(re * z + im * z_swapped, axis=0, keepdims=True)
                    i = 2 * table + order
                    sums_ref[c, i : i + 1] = moment

    def _coarse_moments(self, c, table_ref, sign: int) -> list[Moments]:
        """Moments over the blocks of eight rows, for the two parts a of the coarse powers.

        They are sum a V and sum l a V over the blocks, where l is the first token of a block:
        8 m i + k for block i of the tokens m j + k.
        """
        by_k = [self._block_moments(c, table_ref, k, sign) for k in range(self.block.m)]
        joined = []
        for first_k, *other_ks in zip(*by_k):
            scale = SUBLANES * self.block.m
            zeroth, first = first_k.zeroth, scale * first_k.first
            for k, moments in enumerate(other_ks, start=1):
                zeroth += moments.zeroth
                first += scale * moments.first + k * moments.zeroth
            joined.append(Moments(zeroth, first))
        return joined

    def _block_moments(self, c, table_ref, k: int, sign: int) -> tuple[Moments, Moments]:
        """sum_i a_i V_i and sum_i i a_i V_i over the blocks i of the tokens m j + k.

        The second adds up the first's partial sums: sum_i i x_i = sum_n sum_{i>n} x_i.
        """
        zero = jnp.zeros((SUBLANES, LANES), jnp.float32)
        re, im, re_partial, im_partial = zero, zero, zero, zero
        num_blocks = self.block.num_groups // SUBLANES
        for i in range(num_blocks)[::-1]:
            block = k * num_blocks + i
            row = self.block.num_coarse - 1 - block if sign > 0 else block
            v = table_ref[block * SUBLANES : (block + 1) * SUBLANES]
            re += v * self.coarse_ref[c, 0, row : row + 1]
            im += v * self.coarse_ref[c, 1, row : row + 1]
            if i:
                re_partial += re
                im_partial += im
        return Moments(re, re_partial), Moments(im, im_partial)
