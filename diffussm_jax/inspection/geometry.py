"""Where tokens are, and how far apart: distances are in tokens."""

from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int

from diffussm_jax.shapes import Grid

Squares = Float[np.ndarray, "i j"]


def positions(grid: Grid, group_size: int = 1) -> Float[np.ndarray, "j 2"]:
    """Row and column of each token in raster order, or of the centre of each group."""
    height, width = grid
    rows, columns = np.divmod(np.arange(height * width), width)
    tokens = np.stack([rows, columns], axis=1)
    return tokens.reshape(-1, group_size, 2).mean(axis=1)


def square_distances(
    targets: Float[np.ndarray, "i 2"], sources: Float[np.ndarray, "j 2"]
) -> Squares:
    """The squared Euclidean distance of each pair."""
    return np.square(targets[:, None] - sources).sum(axis=-1)


def window(points: Float[np.ndarray, "i 2"], side: int) -> Squares:
    """1 where a token lies in the square of `side` tokens around another, else 0."""
    distance = np.abs(points[:, None] - points).max(axis=-1)
    return (distance <= side // 2).astype(np.float64)


def lag_squares(grid: Grid) -> tuple[Float[np.ndarray, " l"], Float[np.ndarray, " l"]]:
    """Mean squares of the rows, and of the columns, that a lag in raster order leads across.

    Lag l = rows * width + columns, where columns is negative for what wraps into the next row. The
    mean is over the columns to start from.
    """
    height, width = grid
    lags = np.arange(height * width)
    rows, columns = np.divmod(np.arange(width) + lags[:, None], width)
    columns = columns - np.arange(width)
    return np.square(rows).mean(axis=1), np.square(columns).mean(axis=1)


def root_mean_square(weights: Array | np.ndarray, squares: np.ndarray) -> Any:
    """sqrt(sum w d^2 / sum w) over the axes of d^2, the last ones of w; 0 where w is 0."""
    weights = np.asarray(weights, np.float64)
    axes = tuple(range(-squares.ndim, 0))
    total = weights.sum(axis=axes)
    return np.sqrt((weights * squares).sum(axis=axes) / np.where(total > 0, total, 1))


def middle(grid: Grid, num_rows: int) -> int:
    """Which of the rows, tokens or groups of them, has the token in the middle of the image."""
    height, width = grid
    return (height // 2 * width + width // 2) * num_rows // (height * width)


def spread(num: int, of: int, *, include: int = 0) -> Int[np.ndarray, " s"]:
    """`num` of the numbers below `of`, evenly spaced, one of them given; all if there are fewer."""
    if num >= of:
        return np.arange(of)
    numbers = np.linspace(0, of - 1, num).round().astype(int)
    numbers[np.abs(numbers - include).argmin()] = include
    return numbers
