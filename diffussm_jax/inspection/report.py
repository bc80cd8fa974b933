"""The numbers of a report: what each layer does at each noise level, as nested dicts of arrays."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from diffussm_jax.config import Config, InspectConfig
from diffussm_jax.diffusion import create_process
from diffussm_jax.diffusion.guidance import told
from diffussm_jax.diffusion.process import NoisedBatch
from diffussm_jax.inspection import filters, maps
from diffussm_jax.inspection.geometry import middle, positions, spread, square_distances, window
from diffussm_jax.inspection.perturbation import KINDS, make_error
from diffussm_jax.inspection.sensitivity import sensitivity
from diffussm_jax.inspection.sensitivity import summary as sensitivity_summary
from diffussm_jax.inspection.walk import (
    Block,
    Layer,
    layers,
    mixer_of,
    mixing_of,
    name_of,
    ssm_of,
    walk,
)
from diffussm_jax.models.backbone import Backbone
from diffussm_jax.shapes import Condition, Grid, Groups

Report = dict[str, Any]


def look(config: Config, model: Backbone, batches: Sequence[NoisedBatch]) -> list[Report]:
    """What the chosen layers do with each of the batches, one for each noise level."""
    grid = model.token_grid(batches[0].x0)
    reports = [
        _begun(layer, config.inspect)
        for layer in layers(model, grid)
        if is_chosen(config.inspect, layer.number)
    ]
    for batch in batches:
        for report, measured in zip(reports, _look_at(config, model, batch), strict=True):
            report["at"].append(measured)
    return reports


def _begun(layer: Layer, options: InspectConfig) -> Report:
    """The report of a layer before it is looked at."""
    name, stage, numbers = f"layer {layer.number}", layer.stack.stage, layer.stack.numbers
    report = {
        "layer": layer.number,
        "name": name if stage is None else f"{name} (stage {stage})",
        "mixer": name_of(layer.block),
        "stage": stage,
        "layers_of_stage": (numbers[0], numbers[-1]),
        "grid": layer.grid,
        "width": layer.width,
        "at": [],
    }
    if report["mixer"] == "attention":
        report["uniform"] = of_uniform_maps(layer.grid, options)
    return report


def _look_at(config: Config, model: Backbone, batch: NoisedBatch) -> list[Report]:
    process, measured = create_process(config.diffusion), []
    x_t = process.x_t(batch.x0, batch.t, batch.eps)
    conditions = process.conditions(batch.t)
    level = {"noise_level": float(process.noise_level(conditions)[0])}

    def visit(layer: Layer, x: Groups, c: Condition) -> None:
        if is_chosen(config.inspect, layer.number):
            arrays = jax.device_get(_measure(layer.block, x, c, layer.grid, config.inspect))
            measured.append(level | _summary(arrays, layer.grid, config.inspect))

    def denoise(x_t: Array, t: Array, y: Array | None) -> Array:
        return walk(model, x_t, t, y, visit)

    denoiser = denoise if batch.scale is None else told(denoise, batch.scale)
    denoiser(x_t, conditions, batch.y)
    return measured


def is_chosen(options: InspectConfig, number: int) -> bool:
    """Whether a layer is one of those to look at."""
    return options.layers is None or number in options.layers


@functools.partial(jax.jit, static_argnames=("grid", "options"))
def _measure(block: Block, x: Groups, c: Condition, grid: Grid, options: InspectConfig) -> Report:
    """The sensitivities of a layer's operator and of its mixer, and what its attention maps say."""
    key = jax.random.key(0)
    measured: Report = {}
    mixing = mixing_of(block, x, c, grid)
    if mixing is not None:
        tokens = _sources(options, grid, mixing.moved.shape[1])
        # One direction is exact: the operator does the same to each feature, or each has its own.
        measured["mixing"] = sensitivity(mixing.apply, mixing.moved, tokens, key=key, num_probes=1)
    if mixing is not None and mixing.scores is not None:
        measured["attention"] = _attention(*mixing.scores, grid, options)
    mixer, tokens = mixer_of(block, c, grid), _sources(options, grid, x.shape[1])
    measured["sensitivity"] = sensitivity(mixer, x, tokens, key=key, num_probes=options.probes)
    return measured


def _attention(q: Array, k: Array, grid: Grid, options: InspectConfig) -> dict[str, Array]:
    """Statistics of the maps, each [b h ...]; the maps of one image at a time are in memory."""
    squares, inside = _pairs(grid, options)

    def of_image(scores: tuple[Array, Array]) -> dict[str, Array]:
        a = maps.attention_map(*(x[None] for x in scores))[0]
        mass = maps.incoming_mass(a)
        return {
            "entropy": maps.entropy(a),
            "mass_within_window": maps.mass_within(a, inside),
            "effective_field": maps.effective_field(a, squares),
            "sinks": maps.is_sink(mass).sum(axis=-1),
            "incoming": mass,
            "of_the_middle_token": a[:, middle(grid, a.shape[1])],
        }

    return jax.lax.map(of_image, (q, k))


def _pairs(grid: Grid, options: InspectConfig) -> tuple[Array, Array]:
    """The squared distance of each pair of tokens, and whether one is in the other's window."""
    points = positions(grid)
    pairs = square_distances(points, points), window(points, options.window)
    return jnp.asarray(pairs[0]), jnp.asarray(pairs[1])


def _sources(options: InspectConfig, grid: Grid, num_rows: int) -> Int[np.ndarray, " s"]:
    """The tokens, or groups of them, whose influence is measured."""
    return spread(options.tokens, num_rows, include=middle(grid, num_rows))


def _summary(measured: Report, grid: Grid, options: InspectConfig) -> Report:
    summaries: Report = {}
    for name in ("mixing", "sensitivity"):
        if name in measured:
            s = measured[name]
            points = positions(grid, grid[0] * grid[1] // s.shape[1])
            tokens = _sources(options, grid, len(points))
            at = int(np.flatnonzero(tokens == middle(grid, len(points)))[0])
            squares = square_distances(points, points[tokens])
            summaries[name] = sensitivity_summary(s, squares, middle=at)
    if "attention" in measured:
        attention = measured["attention"]
        summaries["attention"] = {name: x.mean(axis=0) for name, x in attention.items()}
        variance = attention["incoming"].var(axis=0).mean(axis=-1)
        summaries["attention"]["incoming_variance_over_images"] = variance
    return summaries


def add_filters(
    reports: list[Report], model: Backbone, initial: Backbone | None, grid: Grid
) -> dict[int, Report]:
    """Add to the reports what they say of S4D's filters.

    Args:
        initial: the model before training; None where the run did not begin with a random one.
        grid: height and width of the images in tokens.

    Returns:
        The kernels, and the time scales of the poles, of each layer that has some, to be drawn.
    """
    trained, drawn = list(layers(model, grid)), {}
    before = [] if initial is None else list(layers(initial, grid))
    for report in reports:
        number = report["layer"]
        block, grid = trained[number].block, trained[number].grid
        ssm = ssm_of(block)
        if ssm is None:
            continue
        kernels = filters.kernels(ssm.discretize(), grid[0] * grid[1])
        by_order = filters.by_order(kernels, block)
        blocks_by_time = {"before": before[number].block} if before else {}
        blocks_by_time["after"] = block
        scales = {when: filters.time_scales(x) for when, x in blocks_by_time.items()}
        report["filters"] = filters.summary(by_order, grid)
        report["poles"] = {when: filters.pole_summary(x) for when, x in scales.items()}
        drawn[number] = {"kernels": by_order, "scales": scales}
    return drawn


def add_perturbations(
    config: Config,
    reports: list[Report],
    graphdef: nnx.GraphDef,
    params: dict,
    batches: Sequence[NoisedBatch],
) -> None:
    """Add to the reports the error of the prediction without the layer's mixing, and with it."""
    error = make_error(config, graphdef)

    def mean_errors(layer: int, kind: str) -> list[float]:
        index = jnp.asarray(KINDS.index(kind))
        return [float(error(params, x, jnp.asarray(layer), index).mean()) for x in batches]

    unperturbed = mean_errors(0, "none")
    for report, kind in perturbations(reports):
        report.setdefault("error", {"none": unperturbed})
        report["error"][kind] = mean_errors(report["layer"], kind)


def perturbations(reports: Sequence[Report]) -> Iterator[tuple[Report, str]]:
    """Each layer with each kind of replacement, where the layer has an operator to replace."""
    for report in reports:
        if "mixing" in report["at"][0]:
            yield from ((report, kind) for kind in KINDS[1:])


def of_uniform_maps(grid: Grid, options: InspectConfig) -> dict[str, float]:
    """What a map that is the same everywhere has: the values to compare with."""
    squares, inside = _pairs(grid, options)
    a = jnp.full_like(squares, 1 / len(squares))
    return {
        "entropy": float(maps.entropy(a)),
        "mass_within_window": float(maps.mass_within(a, inside)),
        "effective_field": float(maps.effective_field(a, squares)),
    }


def as_json(value: Any) -> Any:
    """A report as JSON: arrays as lists, and numbers of five digits."""
    if isinstance(value, dict):
        return {str(name): as_json(x) for name, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(x) for x in value]
    if isinstance(value, (np.ndarray, jax.Array, np.generic)):
        return as_json(value.tolist())
    return float(f"{value:.5g}") if isinstance(value, float) else value
