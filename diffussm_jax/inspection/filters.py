"""S4D's filters: their impulse responses, how far they reach, and where their poles are."""

from typing import Any

import numpy as np
from jaxtyping import Float

from diffussm_jax.inspection.geometry import lag_squares, root_mean_square
from diffussm_jax.inspection.walk import Block, ssm_of
from diffussm_jax.models.mixers.s4d import S4DMixer
from diffussm_jax.shapes import SSM, Grid

Kernels = Float[np.ndarray, "r d l"]

QUARTILES = (25, 50, 75)
DIRECTION_NAMES = ("forward", "backward")


def kernels(ssm: SSM, length: int) -> Kernels:
    """The response to an impulse: k_s = 2 Re sum_n g_n exp(p_n s), and the direct term at lag 0.

    That of the backward direction goes towards earlier tokens. In float64: the angles of fast poles
    are large.
    """
    poles, gains = (np.asarray(x, np.float64) for x in (ssm.poles, ssm.gains))
    poles, gains = (x[..., 0] + 1j * x[..., 1] for x in (poles, gains))
    k = np.zeros((*ssm.skip.shape, length))
    for n in range(poles.shape[-1]):  # all at once would take n times the memory
        k += 2 * np.real(gains[..., n, None] * np.exp(poles[..., n, None] * np.arange(length)))
    k[..., 0] += np.asarray(ssm.skip)
    return k


def by_order(array: np.ndarray, block: Block) -> dict[str, np.ndarray]:
    """Split an array [r d ...] over the channels of a block's SSM by its scan orders."""
    mixer = getattr(block, "mixer", None)
    if not isinstance(mixer, S4DMixer):
        return {"rows": array}
    orders = ["rows"] * mixer.has_rows + ["columns"] * mixer.has_columns
    return dict(zip(orders, np.split(array, len(orders), axis=1)))


def effective_range(k: Float[np.ndarray, "*b l"], squares: Float[np.ndarray, " l"]) -> Any:
    """The root mean square of a distance by lag, under |k|^2."""
    return root_mean_square(np.square(np.asarray(k, np.float64)), squares)


def summary(orders: dict[str, Kernels], grid: Grid) -> dict[str, Any]:
    """What a report says of a layer's kernels, by scan order and direction.

    Ranges are quartiles over the channels, in rows and in columns of the grid of tokens, and in
    tokens of the scan. Shares are of sum |k|^2 over all filters of the layer.
    """
    total = sum(np.square(k).sum() for k in orders.values())
    return {
        order: {
            name: _of_direction(k, order, grid) | {"share": float(np.square(k).sum() / total)}
            for name, k in zip(DIRECTION_NAMES, kernels)
        }
        for order, kernels in orders.items()
    }


def _of_direction(k: Float[np.ndarray, "d l"], order: str, grid: Grid) -> dict[str, Any]:
    if order == "rows":
        rows, columns = lag_squares(grid)
    else:
        columns, rows = lag_squares((grid[1], grid[0]))
    squares = {
        "range_in_rows": rows,
        "range_in_columns": columns,
        "range_in_lags": np.square(np.arange(len(rows), dtype=float)),
    }
    ranges = {
        name: np.percentile(effective_range(k, square), QUARTILES)
        for name, square in squares.items()
    }
    at_zero = np.square(k[:, 0]).sum() / np.square(k).sum()
    return ranges | {"share_at_lag_0": float(at_zero)}


def time_scales(block: Block) -> Float[np.ndarray, "r d n 2"]:
    """Of each pole of a block, the tokens in which it decays by e, and its radians per token."""
    ssm = ssm_of(block)
    assert ssm is not None
    re, im = np.moveaxis(np.asarray(ssm.discretize().poles, np.float64), -1, 0)
    return np.stack([-1 / re, np.abs(im)], axis=-1)


def pole_summary(scales: Float[np.ndarray, "r d n 2"]) -> dict[str, Any]:
    """Quartiles of the decay and of the angle of poles."""
    decay, angle = scales.reshape(-1, 2).T
    return {
        "decay_in_tokens": np.percentile(decay, QUARTILES),
        "radians_per_token": np.percentile(angle, QUARTILES),
    }
