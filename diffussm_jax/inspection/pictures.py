"""Heat maps, curves and points as PNGs, by Pillow alone."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image, ImageDraw, ImageFont

from diffussm_jax.shapes import ceil_div

Picture = Image.Image
Values = Shaped[np.ndarray, "..."]
Number = int | float

INK, GREY, PALE = "#1d2433", "#98a2b3", "#e4e7ec"
CYCLE = ("#3b4cc0", "#e4761b", "#2a9d58", "#b5338a", "#6b7280", "#c9a400", "#1aa3b8", "#a33a2c")
# Of viridis (van der Walt and Smith 2015), at equal distances.
_VIRIDIS = np.array(
    [(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], np.float64
)
_GAP, _MARGIN, _FONT_SIZE = 6, 12, 12


class Axes(NamedTuple):
    """What stands beside the axes of a plot, and which of them are logarithmic."""

    x: str
    y: str
    is_x_log: bool = False
    is_y_log: bool = False


def colours(values: Values, low: Number, high: Number) -> np.ndarray:
    """The colours of values from `low` to `high`, uint8 [... 3]."""
    share = np.clip((np.nan_to_num(values) - low) / max(high - low, 1e-30), 0, 1)
    steps = np.linspace(0, 1, len(_VIRIDIS))
    channels = [np.interp(share, steps, channel) for channel in _VIRIDIS.T]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def heat_maps(
    maps: Float[np.ndarray, "r c h w"],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    each: bool = False,
) -> Picture:
    """Draw a table of heat maps with a name for each row and column.

    The colours go from 0 to the largest value of all, or where `each` is set, of the map itself.
    """
    num_rows, num_columns, height, width = maps.shape
    zoom = max(1, 56 // max(height, width))
    cell_height, cell_width = zoom * height + _GAP, zoom * width + _GAP
    cell_width = max(cell_width, *(int(text_width(name)) + _GAP for name in columns))
    left = _MARGIN + max(int(text_width(name)) for name in rows) + _GAP
    top = _MARGIN + _FONT_SIZE + _GAP
    highest = float(np.nanmax(maps))
    scale = "each map from 0 to its own maximum" if each else f"0 (dark) to {highest:.3g} (yellow)"
    width_needed = max(num_columns * cell_width, int(text_width(scale)))
    size = left + width_needed + _MARGIN, top + num_rows * cell_height + 2 * _MARGIN + 8
    picture, draw = blank(size)
    for index in np.ndindex(num_rows, num_columns):
        y, x = top + index[0] * cell_height, left + index[1] * cell_width
        high = float(np.nanmax(maps[index])) if each else highest
        pixels = colours(maps[index], 0, high).repeat(zoom, 0).repeat(zoom, 1)
        picture.paste(Image.fromarray(pixels), (x, y))
    for row, name in enumerate(rows):
        write(draw, (left - _GAP, top + row * cell_height + zoom * height / 2), name, "rm")
    for column, name in enumerate(columns):
        write(draw, (left + column * cell_width + zoom * width / 2, top - _GAP), name, "mb")
    write(draw, (left, size[1] - _MARGIN), scale, "ls")
    return picture


def curves(
    lines: Mapping[str, tuple[Sequence[Number] | Values, Sequence[Number] | Values]],
    axes: Axes,
    *,
    title: str = "",
    level: Number | None = None,
    size: tuple[int, int] = (400, 260),
) -> Picture:
    """Draw named curves, each of (x, y), and a dashed line at y = `level`."""
    named = {name: _finite(x, y, axes) for name, (x, y) in lines.items()}
    picture, draw, place = _frame(named, CYCLE, axes, title, level, size)
    for index, points in enumerate(named.values()):
        colour = CYCLE[index % len(CYCLE)]
        placed = [place(*point) for point in points]
        if len(placed) > 1:
            draw.line(placed, fill=colour, width=2)
        for x, y in placed if len(placed) <= 40 else ():
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
    return picture


def points(
    clouds: Mapping[str, Float[np.ndarray, "num 2"]],
    axes: Axes,
    *,
    title: str = "",
    size: tuple[int, int] = (400, 260),
) -> Picture:
    """Draw named clouds of points, each of (x, y), of which the first are larger and grey.

    Of a cloud of more than 1,000 points some are left out.
    """
    named = {name: _finite(cloud[:, 0], cloud[:, 1], axes) for name, cloud in clouds.items()}
    palette = (GREY, *CYCLE) if len(named) > 1 else CYCLE
    picture, draw, place = _frame(named, palette, axes, title, None, size)
    for colour, cloud in zip(palette, named.values()):
        radius = 3 if colour == GREY else 1
        for point in cloud[:: ceil_div(max(len(cloud), 1), 1000)]:
            x, y = place(*point)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return picture


def table(pictures: Sequence[Sequence[Picture]]) -> Picture:
    """Put pictures of one size into rows."""
    width, height = pictures[0][0].size
    whole, _ = blank((width * max(map(len, pictures)), height * len(pictures)))
    for row, line in enumerate(pictures):
        for column, picture in enumerate(line):
            whole.paste(picture, (column * width, row * height))
    return whole


def blank(size: tuple[int, int]) -> tuple[Picture, ImageDraw.ImageDraw]:
    """A white picture to draw on."""
    picture = Image.new("RGB", size, "white")
    return picture, ImageDraw.Draw(picture)


def text_width(text: str) -> float:
    """The width of a text in pixels."""
    return _font().getlength(text)


def write(
    draw: ImageDraw.ImageDraw, at: tuple[Number, Number], text: str, anchor: str, colour: str = INK
) -> None:
    """Write a text at a point, anchored as Pillow says: `mm` is its middle."""
    draw.text(at, text, fill=colour, font=_font(), anchor=anchor)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_FONT_SIZE)


def _finite(x: Sequence[Number] | Values, y: Sequence[Number] | Values, axes: Axes) -> np.ndarray:
    """The points (x, y) that the axes can show, [num 2]."""
    pairs = np.stack([np.asarray(x, np.float64), np.asarray(y, np.float64)], axis=-1)
    shown = np.isfinite(pairs).all(axis=1)
    for column, is_log in enumerate((axes.is_x_log, axes.is_y_log)):
        shown &= (pairs[:, column] > 0) | (not is_log)
    return pairs[shown]


def _frame(
    named: Mapping[str, np.ndarray],
    palette: Sequence[str],
    axes: Axes,
    title: str,
    level: Number | None,
    size: tuple[int, int],
) -> tuple[Picture, ImageDraw.ImageDraw, Callable[[Number, Number], tuple[float, float]]]:
    """A picture with axes and a legend, and the function from values to its pixels."""
    picture, draw = blank(size)
    clouds = list(named.values())
    box = (56, 26, size[0] - 12 - _legend(draw, list(named), palette, size), size[1] - 40)
    ys = [cloud[:, 1] for cloud in clouds] + ([np.array([level])] if level is not None else [])
    x_place, x_ticks = _axis(
        np.concatenate([c[:, 0] for c in clouds]), box[0], box[2], axes.is_x_log
    )
    y_place, y_ticks = _axis(np.concatenate(ys), box[3], box[1], axes.is_y_log)
    for tick in x_ticks:
        x = x_place(tick)
        draw.line([(x, box[1]), (x, box[3])], fill=PALE)
        write(draw, (x, box[3] + 4), f"{tick:.4g}", "mt", GREY)
    for tick in y_ticks:
        y = y_place(tick)
        draw.line([(box[0], y), (box[2], y)], fill=PALE)
        write(draw, (box[0] - 4, y), f"{tick:.3g}", "rm", GREY)
    draw.rectangle(box, outline=GREY)
    write(draw, ((box[0] + box[2]) / 2, size[1] - 6), axes.x, "ms")
    write(draw, (8, 8), f"{title}: {axes.y}" if title else axes.y, "lt")
    if level is not None:
        for x in range(box[0], box[2], 8):
            draw.line([(x, y_place(level)), (x + 4, y_place(level))], fill=INK)
    return picture, draw, lambda x, y: (x_place(x), y_place(y))


def _axis(
    values: np.ndarray, start: Number, end: Number, is_log: bool
) -> tuple[Callable[[Number], float], list[float]]:
    """The function from values to pixels between `start` and `end`, and round values to mark."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (1.0, 1.0)
    if is_log:
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        low, high = math.log10(low), math.log10(high)
        ticks = [10.0**e for e in exponents][:: max(1, len(exponents) // 4)]
    low, high = (low - 0.5, high + 0.5) if high - low < 1e-12 else (low, high)
    pad = 0.04 * (high - low)
    low, high = low - pad, high + pad
    if not is_log:
        step = 10 ** math.floor(math.log10((high - low) / 2))
        step *= next(f for f in (0.5, 1, 2, 5) if (high - low) / (step * f) <= 5)
        step = max(step, 1) if (values == values.round()).all() else step  # numbers of layers
        first, last = math.ceil(low / step), math.floor(high / step)
        ticks = [float(i * step) for i in range(first, last + 1)]

    def place(value: Number) -> float:
        share = ((math.log10(value) if is_log else value) - low) / (high - low)
        return start + share * (end - start)

    inside = [t for t in ticks if low <= (math.log10(t) if is_log else t) <= high]
    return place, inside


def _legend(
    draw: ImageDraw.ImageDraw, names: Sequence[str], palette: Sequence[str], size: tuple[int, int]
) -> int:
    """Name what is drawn, in its colours, at the right; return the width that this takes."""
    if len(names) < 2:
        return 0
    for index, name in enumerate(names):
        at = size[0] - 6, 28 + index * (_FONT_SIZE + 3)
        write(draw, at, name, "rt", palette[index % len(palette)])
    return int(max(map(text_width, names)))
