"""Heat maps, curves and points, drawn by matplotlib."""

import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from matplotlib.axes import Axes as Plot
from matplotlib.figure import Figure
from PIL import Image

from diffussm_jax.shapes import ceil_div

Picture = Image.Image
Values = Shaped[np.ndarray, "..."]
Number = int | float

DPI = 100
PLOT_INCHES = 4.0, 2.6
CELL_INCHES = 0.6  # of the longer side of a heat map
MAX_MARKED, MAX_POINTS = 40, 1000
TINY = 1e-30


class Axes(NamedTuple):
    """What stands beside the axes of a plot, and which of them are logarithmic.

    Attributes:
        bands: parts of the x axis, each (from, to, its name), every other of which is shaded.
    """

    x: str
    y: str
    is_x_log: bool = False
    is_y_log: bool = False
    bands: Sequence[tuple[float, float, str]] = ()


def heat_maps(
    maps: Float[np.ndarray, "r c h w"],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    each: bool = False,
) -> Picture:
    """Draw a table of heat maps with a name for each row and column; NaN is left blank.

    The colours go from 0 to the largest value of all, or where `each` is set, of the map itself.
    """
    num_rows, num_columns, height, width = maps.shape
    inches = CELL_INCHES / max(height, width)
    beside = 1.8 + 0.08 * max(map(len, rows))  # the names of rows, and the bar of colours
    size = beside + inches * width * num_columns, 0.8 + inches * height * num_rows
    figure = Figure(figsize=size, layout="constrained")
    plot = figure.subplots()
    highest = np.fmax.reduce(maps, axis=(2, 3), keepdims=True, initial=TINY)
    tiles = mosaic(maps / highest if each else maps)
    image = plot.imshow(tiles, vmin=0, vmax=max(np.nanmax(tiles), TINY), interpolation="nearest")
    plot.set_xticks(_centres(num_columns, width), columns)
    plot.set_yticks(_centres(num_rows, height), rows)
    plot.tick_params(length=0, labelsize="small")
    plot.xaxis.tick_top()
    plot.spines[:].set_visible(False)
    figure.colorbar(image, shrink=0.8, label="share of each map's maximum" if each else "")
    return _drawn(figure)


def mosaic(maps: Float[np.ndarray, "r c h w"]) -> Float[np.ndarray, "y x"]:
    """Put a table of maps into one array, with NaN between two."""
    num_rows, num_columns, height, width = maps.shape
    cells = np.full((num_rows, height + 1, num_columns, width + 1), np.nan)
    cells[:, :height, :, :width] = maps.swapaxes(1, 2)
    return cells.reshape(num_rows * (height + 1), -1)[:-1, :-1]


def curves(
    lines: Mapping[str, tuple[Sequence[Number] | Values, Sequence[Number] | Values]],
    axes: Axes,
    *,
    title: str = "",
    levels: Mapping[Number, Number] | None = None,
) -> Picture:
    """Draw named curves, each of (x, y), and dashed lines at the y of each x in `levels`."""
    figure, plot = _plot(axes, title)
    for name, (x, y) in lines.items():
        plot.plot(x, y, ".-" if len(x) <= MAX_MARKED else "-", label=name)
    for at, level in (levels or {}).items():
        plot.hlines(level, at - 0.5, at + 0.5, color="grey", linestyle="--", linewidth=1)
    return _with_legend(figure)


def points(
    clouds: Mapping[str, Float[np.ndarray, "num 2"]], axes: Axes, *, title: str = ""
) -> Picture:
    """Draw named clouds of points, each of (x, y); of a large cloud some points are left out."""
    figure, plot = _plot(axes, title)
    for name, cloud in clouds.items():
        x, y = cloud[:: ceil_div(max(len(cloud), 1), MAX_POINTS)].T
        plot.scatter(x, y, s=3, label=name)
    return _with_legend(figure)


def table(pictures: Sequence[Sequence[Picture]]) -> Picture:
    """Put pictures of one size into rows."""
    width, height = pictures[0][0].size
    size = width * max(map(len, pictures)), height * len(pictures)
    whole = Image.new("RGB", size, "white")
    for row, line in enumerate(pictures):
        for column, picture in enumerate(line):
            whole.paste(picture, (column * width, row * height))
    return whole


def _centres(num: int, size: int) -> np.ndarray:
    return (size + 1) * np.arange(num) + (size - 1) / 2


def _plot(axes: Axes, title: str) -> tuple[Figure, Plot]:
    figure = Figure(figsize=PLOT_INCHES, layout="constrained")
    plot = figure.subplots()
    # Above the axis, where a long name has room.
    plot.set_title(f"{title}: {axes.y}" if title else axes.y, fontsize="medium", loc="left")
    plot.set_xlabel(axes.x)
    plot.spines[["top", "right"]].set_visible(False)
    if axes.is_x_log:
        plot.set_xscale("log")
    if axes.is_y_log:
        plot.set_yscale("log")
    if axes.bands:
        _shade(plot, axes.bands)
    return figure, plot


def _shade(plot: Plot, bands: Sequence[tuple[float, float, str]]) -> None:
    for start, end, _ in bands[1::2]:
        plot.axvspan(start, end, color="0.94", linewidth=0, zorder=0)
    plot.set_xlim(bands[0][0], bands[-1][1])
    names = plot.secondary_xaxis("top")
    names.set_xticks([(start + end) / 2 for start, end, _ in bands], [name for *_, name in bands])
    names.tick_params(length=0, pad=1, labelsize="x-small", labelcolor="0.4")
    names.spines[:].set_visible(False)


def _with_legend(figure: Figure) -> Picture:
    figure.legend(loc="outside right center", frameon=False, fontsize="small")
    return _drawn(figure)


def _drawn(figure: Figure) -> Picture:
    file = io.BytesIO()
    figure.savefig(file, dpi=DPI, format="png")
    return Image.open(file).convert("RGB")
