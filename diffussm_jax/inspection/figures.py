"""The pictures of a report, each with the words below it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from diffussm_jax.inspection import filters
from diffussm_jax.inspection.geometry import middle, spread
from diffussm_jax.inspection.pictures import Axes, Picture, curves, heat_maps, points, table
from diffussm_jax.inspection.report import Report
from diffussm_jax.shapes import Grid

Lines = dict[str, tuple[list[int], list[float]]]  # x and y of curves by their names


class Figure(NamedTuple):
    """A picture, the name of its file, and what it shows."""

    name: str
    caption: str
    picture: Picture


def figures(report: Report, drawn: dict[int, Report], x_t: Sequence[np.ndarray]) -> list[Figure]:
    """Draw all that a report has.

    Args:
        drawn: what `add_filters` returned.
        x_t: the noised images [b h w c] at each noise level.
    """
    layers, grid = report["layers"], report["grid"]
    levels = [f"noise {level:.2g}" for level in report["noise_levels"]]
    made = [_inputs(x_t, levels)]
    if any("attention" in layer["at"][0] for layer in layers):
        made += _attention(report, levels, grid)
    if drawn:
        made += _filters(report, drawn)
    made += _sensitivities(layers, levels, grid)
    if any("error" in layer for layer in layers):
        made.append(_perturbations(layers, levels))
    return made


def _inputs(x_t: Sequence[np.ndarray], levels: list[str]) -> Figure:
    # Each image from its darkest to its brightest value: noise has no natural range.
    images = np.stack([x.mean(axis=-1) for x in x_t])
    images = images - images.min(axis=(-2, -1), keepdims=True)
    columns = [str(index) for index in range(images.shape[1])]
    caption = "The noised images that the model was looked at with, the mean of their channels."
    return Figure("inputs", caption, heat_maps(images, rows=levels, columns=columns, each=True))


def _attention(report: Report, levels: list[str], grid: Grid) -> Iterator[Figure]:
    layers = [layer for layer in report["layers"] if "attention" in layer["at"][0]]
    rows = [layer["name"] for layer in layers]
    num_heads = max(len(layer["at"][0]["attention"]["entropy"]) for layer in layers)
    heads, of_grids = [f"head {head}" for head in range(num_heads)], _of_grids(layers)

    def tabled(name: str, index: int) -> Float[np.ndarray, "r c h w"]:
        maps = np.full((len(layers), num_heads, *grid), np.nan)  # some have fewer heads
        for row, layer in zip(maps, layers, strict=True):
            for head, values in zip(row, layer["at"][index]["attention"][name]):
                head[:] = _enlarged(np.reshape(values, layer["grid"]), grid)
        return maps

    for index, level in enumerate(levels):
        caption = (
            f"Attention at {level}: the incoming mass of each token, 1 on average. A token far "
            "above the others is a sink." + of_grids
        )
        picture = heat_maps(tabled("incoming", index), rows=rows, columns=heads)
        yield Figure(f"attention_incoming_{index}", caption, picture)
        caption = f"Attention at {level}: where the token in the middle of the image looks."
        caption += of_grids
        picture = heat_maps(
            tabled("of_the_middle_token", index), rows=rows, columns=heads, each=True
        )
        yield Figure(f"attention_map_{index}", caption, picture)
    names = {
        "entropy": "entropy (nats)",
        "mass_within_window": "mass within the window",
        "effective_field": "effective field (tokens)",
    }
    charts = [
        curves(
            _by_layer(layers, levels, "attention", name),
            _axes(layers, label),
            levels={layer["layer"]: layer["uniform"][name] for layer in layers},
        )
        for name, label in names.items()
    ]
    caption = (
        "Attention by layer, the mean over heads. Dashed: a map that is the same everywhere."
        + of_grids
    )
    yield Figure("attention_by_layer", caption, table([charts]))


def _filters(report: Report, drawn: dict[int, Report]) -> Iterator[Figure]:
    layers, rows = [layer for layer in report["layers"] if "filters" in layer], []
    names = {layer["layer"]: layer["name"] for layer in layers}
    for number, layer in drawn.items():
        named = [
            (f"{names[number]}, {order}, {direction}", k)
            for order, by_direction in layer["kernels"].items()
            for direction, k in zip(filters.DIRECTION_NAMES, by_direction)
        ]
        rows.append([_kernels(k, title, report["settings"]["channels"]) for title, k in named])
    widths = dict.fromkeys(str(layer["grid"][1]) for layer in layers)
    caption = (
        "Filters of S4D from lag 1, each divided by its largest magnitude there, of channels from "
        "the shortest range (first colour) to the longest. In the order of rows, a row of the "
        f"image is {' or '.join(widths)} lags. Lag 0, not shown, has the direct term besides."
        + _of_grids(layers)
    )
    yield Figure("s4d_kernels", caption, table(rows))
    axes = Axes("decay (tokens)", "radians per token", is_x_log=True)
    charts = [
        points(
            {when: x.reshape(-1, 2) for when, x in layer["scales"].items()},
            axes,
            title=names[number],
        )
        for number, layer in drawn.items()
    ]
    caption = "Poles of S4D: in how many tokens each decays by e, and how fast it turns."
    caption += _of_grids(layers)
    yield Figure("s4d_poles", caption, table([charts[i : i + 3] for i in range(0, len(charts), 3)]))
    yield _ranges(layers)


def _kernels(k: Float[np.ndarray, "d l"], title: str, num: int) -> Picture:
    lags = np.arange(k.shape[-1])
    by_range = np.argsort(filters.effective_range(k, np.square(lags.astype(float))))
    chosen = by_range[spread(num, len(by_range))]
    scaled = k[chosen, 1:] / np.abs(k[chosen, 1:]).max(axis=1, keepdims=True, initial=1e-30)
    lines = {f"{channel}": (lags[1:], scaled[i]) for i, channel in enumerate(chosen)}
    return curves(lines, Axes("lag", "k / max |k|"), title=title)


def _ranges(layers: list[Report]) -> Figure:
    """Median ranges, and the share of each direction, by layer."""

    def lines(name: str, pick: Callable[[Any], float]) -> Lines:
        by_filter: Lines = {}
        for layer in layers:
            for order, by_direction in layer["filters"].items():
                for direction, values in by_direction.items():
                    xs, ys = by_filter.setdefault(f"{order} {direction}", ([], []))
                    xs.append(layer["layer"])
                    ys.append(pick(values[name]))
        return by_filter

    median = filters.QUARTILES.index(50)
    charts = [
        curves(lines("range_in_rows", lambda x: x[median]), _axes(layers, "median range in rows")),
        curves(
            lines("range_in_columns", lambda x: x[median]), _axes(layers, "median range in columns")
        ),
        curves(lines("share", float), _axes(layers, "share of sum |k|^2")),
    ]
    caption = (
        "How far S4D's filters reach across rows and across columns of the image, and what share "
        "each scan order and direction has." + _of_grids(layers)
    )
    return Figure("s4d_by_layer", caption, table([charts]))


def _sensitivities(layers: list[Report], levels: list[str], grid: Grid) -> Iterator[Figure]:
    rows = [layer["name"] for layer in layers]

    def field(at: Report, own: Grid) -> Float[np.ndarray, "h w"]:
        return _enlarged(_around_the_middle(at["sensitivity"]["of_the_middle_token"], own), grid)

    fields = np.stack([[field(at, layer["grid"]) for at in layer["at"]] for layer in layers])
    caption = (
        "Where the token in the middle of the image is felt: the sensitivity to it of each other "
        "token of the mixer's output. The token itself is left out." + _of_grids(layers)
    )
    picture = heat_maps(fields, rows=rows, columns=levels, each=True)
    yield Figure("sensitivity_map", caption, picture)
    with_operator = [layer for layer in layers if "mixing" in layer["at"][0]]
    reach = _by_layer(layers, levels, "sensitivity", "effective_field")
    charts = [curves(reach, _axes(layers, "effective field of the mixer (tokens)"))]
    if with_operator:
        variance = _by_layer(with_operator, levels, "mixing", "incoming_variance_over_images")
        axes = _axes(with_operator, "variance of incoming mass over images")
        charts.append(curves(variance, axes))
    caption = (
        "By layer: how far the mixer reaches, and how much the incoming mass of a token under "
        "the operator that mixes depends on the image. The operator of S4D cannot depend on it."
        + _of_grids(layers)
    )
    yield Figure("sensitivity_by_layer", caption, table([charts]))


def _around_the_middle(values: Float[np.ndarray, " j"], grid: Grid) -> Float[np.ndarray, "h w"]:
    """Values of tokens, or of groups of neighbours, as an image with 0 in the middle."""
    others = np.where(np.arange(len(values)) == middle(grid, len(values)), 0, values)
    return others.repeat(grid[0] * grid[1] // len(values)).reshape(grid)


def _perturbations(layers: list[Report], levels: list[str]) -> Figure:
    layers = [layer for layer in layers if "error" in layer]
    kinds = [kind for kind in layers[0]["error"] if kind != "none"]
    numbers = [layer["layer"] for layer in layers]
    charts = []
    for kind in kinds:
        lines = {
            level: (numbers, [x["error"][kind][i] / x["error"]["none"][i] for x in layers])
            for i, level in enumerate(levels)
        }
        axes = _axes(layers, f"error, mixing replaced by {kind}")
        charts.append(curves(lines, axes, levels=dict.fromkeys(numbers, 1)))
    caption = (
        "The squared error of the model's prediction with the mixing of one layer replaced, over "
        "the error of the model as it is (dashed: 1)."
    )
    return Figure("perturbations", caption, table([charts]))


def _enlarged(values: Float[np.ndarray, "i j"], grid: Grid) -> Float[np.ndarray, "h w"]:
    """A map of a coarser grid on a finer one: each token where it lies in the image."""
    height, width = (side // own for side, own in zip(grid, values.shape, strict=True))
    return values.repeat(height, axis=0).repeat(width, axis=1)


def _axes(layers: list[Report], y: str) -> Axes:
    """The axes of a curve over layers, with the stages of a U above them."""
    stages = {layer["stage"]: layer["layers_of_stage"] for layer in layers}
    if None in stages:
        return Axes("layer", y)
    bands = [(first - 0.5, last + 0.5, str(stage)) for stage, (first, last) in stages.items()]
    return Axes("layer (above: stage)", y, bands=bands)


def _of_grids(layers: list[Report]) -> str:
    """What to say in a caption of layers that see grids of several sizes."""
    grids = dict.fromkeys(tuple(layer["grid"]) for layer in layers)
    if len(grids) == 1:
        return ""
    sizes = ", ".join(f"{height} x {width}" for height, width in grids)
    return f" Tokens and lags are those of each layer's own grid ({sizes})."


def _by_layer(layers: list[Report], levels: list[str], of: str, name: str) -> Lines:
    """A curve over layers for each noise level, of the mean over heads where there are some."""
    numbers = [layer["layer"] for layer in layers]
    return {
        level: (numbers, [float(np.mean(layer["at"][i][of][name])) for layer in layers])
        for i, level in enumerate(levels)
    }
