"""The SSM as XLA prepares it for the kernels, and its gradients from the kernels' sums.

The conjugate pairs of the directions lie side by side in 64 lanes, those of each direction padded
to its share. Packed, the real parts of all pairs come first and the imaginary parts follow: 128
lanes. The arrays that XLA works on have the lanes first and the channels last, which it lays out
best.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from diffussm_jax.ops import pairs
from diffussm_jax.ops.pallas_tpu.block import HALF, LANES, SUBLANES, num_levels
from diffussm_jax.shapes import SSM


def powers(ssm: SSM, t: int) -> Float32[Array, "d k 128"]:
    """The powers exp(p 2^i) up to exp(p t), then 2 g, in packed lanes."""
    levels = num_levels(t)
    p = pairs.each(lambda part: part[None], pairs.unpack(ssm.poles))
    steps = 2 ** np.arange(levels)[:, None, None, None]
    rows = pairs.pack(pairs.power(p, steps))  # k r d n 2
    rows = jnp.concatenate([rows, 2 * ssm.gains[None]])
    padding = -rows.shape[0] % SUBLANES
    rows = jnp.pad(rows, ((0, padding), *[(0, 0)] * 4))
    return jnp.swapaxes(pack(jnp.swapaxes(rows, 0, 1)), 0, 1)


class _LanePowers(NamedTuple):
    """The two levels of the kernels' powers, lane by lane."""

    coarse: pairs.Pair  # 64 t/8 d
    rising: pairs.Pair  # 64 8 d


def _lane_powers(poles: Array, reverse: tuple[bool, ...], t: int) -> _LanePowers:
    p = pairs.each(lambda part: part[:, None], _by_lane(poles))
    backward = _backward_lanes(reverse)[:, None]

    def power(steps: np.ndarray) -> pairs.Pair:
        steps = np.where(backward, steps[::-1], steps)[..., None]
        return pairs.power(p, steps)

    return _LanePowers(power(np.arange(0, t, SUBLANES)), power(np.arange(SUBLANES)))


def convolution_kernel(ssm: SSM, reverse: tuple[bool, ...], t: int) -> Float32[Array, "r t d"]:
    """K[0 .. t) as the first row of a circulant.

    The row is K[x] in a forward direction and K[-x mod t] in a backward one.
    """
    lanes = _lane_powers(ssm.poles, reverse, t)
    g = pairs.each(lambda part: part[:, None], _doubled(_by_lane(ssm.gains)))
    weighted = pairs.multiply(g, lanes.rising)
    kernels = []
    for r, (backward, lanes_of_r) in enumerate(zip(reverse, _directions(reverse))):
        coarse = [part[lanes_of_r][:, :, None] for part in lanes.coarse]  # n t/8 1 d
        fine = [part[lanes_of_r][:, None] for part in weighted]  # n 1 8 d
        kernel = (coarse[0] * fine[0] - coarse[1] * fine[1]).sum(axis=0)
        kernel = kernel.reshape(-1, kernel.shape[-1])
        # Rising lanes of a backward direction end with lag 0.
        kernel = jnp.roll(kernel, 1, axis=0) if backward else kernel
        kernels.append(kernel.at[0].add(ssm.skip[r]))
    return jnp.stack(kernels)


def gradients(
    ssm: SSM,
    d_kernel: Float32[Array, "_ r t"],
    sums: Float32[Array, "_ 8 128"],
    reverse: tuple[bool, ...],
    t: int,
) -> SSM:
    """The SSM's gradients from the backward kernel's sums over time (`kernels.Gradients`).

    A table's entries are c exp(p k), so with V its gradient those of c and p are sums of V and of k
    V against its powers.
    """
    d = ssm.poles.shape[1]
    lanes = _lane_powers(ssm.poles, reverse, t)
    sums = jnp.moveaxis(sums[:d], 0, -1)[:6]  # 6 128 d
    falling_0, falling_1, rising_0, rising_1, same, crossed = ((x[:HALF], x[HALF:]) for x in sums)
    d_kernel = jnp.moveaxis(d_kernel[:d], 0, -1)  # r t d
    kernel_0, kernel_1 = _kernel_moments(lanes, d_kernel, reverse)
    backward = _backward_lanes(reverse)[:, None]

    def by_exponent(rising: bool, sum_0: pairs.Pair, sum_1: pairs.Pair) -> pairs.Pair:
        """sum k V exp(p k) from the sums of V exp and x V exp over the rows x of the table."""
        return jax.tree.map(
            lambda a, b: jnp.where(backward == rising, (t - 1) * a - b, b), sum_0, sum_1
        )

    g = _doubled(_by_lane(ssm.gains))
    p = _by_lane(ssm.poles)
    gain = pairs.multiply(g, pairs.exp(p))
    decay = pairs.power(p, np.array(t))
    d_decay = same[0] + same[1], crossed[0] - crossed[1]
    # `reading` counts one exponent more than `rising`.
    reading_1 = pairs.add(by_exponent(True, rising_0, rising_1), rising_0)
    d_poles = [
        by_exponent(False, falling_0, falling_1),
        _conjugate(pairs.multiply(gain, reading_1)),
        _conjugate(pairs.multiply(g, by_exponent(True, kernel_0, kernel_1))),
        pairs.each(lambda x: t * x, pairs.multiply(_conjugate(decay), d_decay)),
    ]
    d_gains = pairs.add(pairs.multiply(pairs.exp(p), rising_0), kernel_0)
    return SSM(
        poles=_from_lane(functools.reduce(pairs.add, d_poles), ssm.poles.shape),
        gains=_from_lane(_doubled(_conjugate(d_gains)), ssm.gains.shape),
        skip=d_kernel[:, 0],
    )


def _kernel_moments(
    lanes: _LanePowers, d_kernel: Float32[Array, "r t d"], reverse: tuple[bool, ...]
) -> tuple[pairs.Pair, pairs.Pair]:
    """sum_x dK[x] rising[x] and sum_x x dK[x] rising[x] for every lane.

    They are taken in two levels as in the kernel: against the coarse powers, then the fine ones.
    """
    coarse_0, coarse_1 = [], []
    for dk, backward, lanes_of_r in zip(d_kernel, reverse, _directions(reverse)):
        dk = jnp.roll(dk, -1, axis=0) if backward else dk
        dk = dk.reshape(-1, SUBLANES, dk.shape[-1])  # t/8 8 d
        first = SUBLANES * np.arange(len(dk), dtype=np.float32)[:, None, None]
        coarse = [part[lanes_of_r][:, :, None] for part in lanes.coarse]
        coarse_0.append([(part * dk).sum(axis=1) for part in coarse])
        coarse_1.append([(part * (first * dk)).sum(axis=1) for part in coarse])
    z0, z1 = (
        (jnp.concatenate([re for re, _ in z]), jnp.concatenate([im for _, im in z]))
        for z in (coarse_0, coarse_1)
    )  # 64 8 d
    row = jnp.arange(SUBLANES, dtype=jnp.float32)[:, None]
    z1 = pairs.add(z1, (row * z0[0], row * z0[1]))
    return _sum_of_product(lanes.rising, z0), _sum_of_product(lanes.rising, z1)


def _sum_of_product(a: pairs.Pair, b: pairs.Pair) -> pairs.Pair:
    return pairs.each(lambda x: x.sum(axis=1), pairs.multiply(a, b))


def _directions(reverse: tuple[bool, ...]) -> list[slice]:
    """The lanes of each direction."""
    width = HALF // len(reverse)
    return [slice(r * width, (r + 1) * width) for r, _ in enumerate(reverse)]


def _backward_lanes(reverse: tuple[bool, ...]) -> np.ndarray:
    return np.repeat(reverse, HALF // len(reverse))


def _by_lane(x: Float32[Array, "r d n 2"]) -> pairs.Pair:
    lanes = pack(x).T
    return lanes[:HALF], lanes[HALF:]


def _from_lane(x: pairs.Pair, shape: tuple[int, ...]) -> Float32[Array, "r d n 2"]:
    return unpack(jnp.concatenate(x).T, shape)


def _doubled(x: pairs.Pair) -> pairs.Pair:
    return pairs.each(lambda part: 2 * part, x)


def _conjugate(x: pairs.Pair) -> pairs.Pair:
    return x[0], -x[1]


def pack(x: Float32[Array, "r *m n 2"]) -> Float32[Array, "*m 128"]:
    """Put the pairs of all directions into packed lanes."""
    r, *_, n, _ = x.shape
    padding = [(0, 0)] * (x.ndim - 2) + [(0, HALF // r - n), (0, 0)]
    x = jnp.moveaxis(jnp.pad(x, padding), (-1, 0), (-3, -2))  # *m 2 r n
    return x.reshape(*x.shape[:-3], LANES)


def unpack(lanes: Float32[Array, "*m 128"], shape: tuple[int, ...]) -> Float32[Array, "r *m n 2"]:
    """Take pairs of this shape [r *m n 2] out of packed lanes."""
    r, *_, n, _ = shape
    x = lanes.reshape(*lanes.shape[:-1], 2, r, HALF // r)[..., :n]
    return jnp.moveaxis(x, (-3, -2), (-1, 0))
