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
    layers, grid = report["layers"], tuple(report["grid"])
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
    rows = [f"layer {layer['layer']}" for layer in layers]
    num_heads = len(layers[0]["at"][0]["attention"]["entropy"])
    heads = [f"head {head}" for head in range(num_heads)]

    def tabled(name: str, index: int) -> Float[np.ndarray, "r c h w"]:
        by_layer = [layer["at"][index]["attention"][name] for layer in layers]
        return np.stack(by_layer).reshape(len(layers), num_heads, *grid)

    for index, level in enumerate(levels):
        caption = (
            f"Attention at {level}: the incoming mass of each token, 1 on average. A token far "
            "above the others is a sink."
        )
        picture = heat_maps(tabled("incoming", index), rows=rows, columns=heads)
        yield Figure(f"attention_incoming_{index}", caption, picture)
        caption = f"Attention at {level}: where the token in the middle of the image looks."
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
            Axes("layer", label),
            level=report["uniform"][name],
        )
        for name, label in names.items()
    ]
    caption = "Attention by layer, the mean over heads. Dashed: a map that is the same everywhere."
    yield Figure("attention_by_layer", caption, table([charts]))


def _filters(report: Report, drawn: dict[int, Report]) -> Iterator[Figure]:
    rows = []
    for number, layer in drawn.items():
        named = [
            (f"layer {number}, {order}, {direction}", k)
            for order, by_direction in layer["kernels"].items()
            for direction, k in zip(filters.DIRECTION_NAMES, by_direction)
        ]
        rows.append([_kernels(k, title, report["settings"]["channels"]) for title, k in named])
    caption = (
        "Filters of S4D from lag 1, each divided by its largest magnitude there, of channels from "
        "the shortest range (first colour) to the longest. In the order of rows, a row of the "
        f"image is {report['grid'][1]} lags. Lag 0, not shown, has the direct term besides."
    )
    yield Figure("s4d_kernels", caption, table(rows))
    axes = Axes("decay (tokens)", "radians per token", is_x_log=True)
    charts = [
        points(
            {when: x.reshape(-1, 2) for when, x in layer["scales"].items()},
            axes,
            title=f"layer {number}",
        )
        for number, layer in drawn.items()
    ]
    caption = "Poles of S4D: in how many tokens each decays by e, and how fast it turns."
    yield Figure("s4d_poles", caption, table([charts[i : i + 3] for i in range(0, len(charts), 3)]))
    yield _ranges([layer for layer in report["layers"] if "filters" in layer])


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
        curves(lines("range_in_rows", lambda x: x[median]), Axes("layer", "median range in rows")),
        curves(
            lines("range_in_columns", lambda x: x[median]), Axes("layer", "median range in columns")
        ),
        curves(lines("share", float), Axes("layer", "share of sum |k|^2")),
    ]
    caption = (
        "How far S4D's filters reach across rows and across columns of the image, and what share "
        "each scan order and direction has."
    )
    return Figure("s4d_by_layer", caption, table([charts]))


def _sensitivities(layers: list[Report], levels: list[str], grid: Grid) -> Iterator[Figure]:
    rows = [f"layer {layer['layer']}" for layer in layers]
    fields = np.stack(
        [
            [
                _around_the_middle(at["sensitivity"]["of_the_middle_token"], grid)
                for at in layer["at"]
            ]
            for layer in layers
        ]
    )
    caption = (
        "Where the token in the middle of the image is felt: the sensitivity to it of each other "
        "token of the mixer's output. The token itself is left out."
    )
    picture = heat_maps(fields, rows=rows, columns=levels, each=True)
    yield Figure("sensitivity_map", caption, picture)
    with_operator = [layer for layer in layers if "mixing" in layer["at"][0]]
    field = _by_layer(layers, levels, "sensitivity", "effective_field")
    charts = [curves(field, Axes("layer", "effective field of the mixer (tokens)"))]
    if with_operator:
        variance = _by_layer(with_operator, levels, "mixing", "incoming_variance_over_images")
        charts.append(curves(variance, Axes("layer", "variance of incoming mass over images")))
    caption = (
        "By layer: how far the mixer reaches, and how much the incoming mass of a token under "
        "the operator that mixes depends on the image. The operator of S4D cannot depend on it."
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
        charts.append(curves(lines, Axes("layer", f"error, mixing replaced by {kind}"), level=1))
    caption = (
        "The squared error of the model's prediction with the mixing of one layer replaced, over "
        "the error of the model as it is (dashed: 1)."
    )
    return Figure("perturbations", caption, table([charts]))


def _by_layer(layers: list[Report], levels: list[str], of: str, name: str) -> Lines:
    """A curve over layers for each noise level, of the mean over heads where there are some."""
    numbers = [layer["layer"] for layer in layers]
    return {
        level: (numbers, [float(np.mean(layer["at"][i][of][name])) for layer in layers])
        for i, level in enumerate(levels)
    }
