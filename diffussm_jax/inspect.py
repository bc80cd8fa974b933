"""`--mode=inspect`: what the layers of a trained model see, as numbers, pictures and one page."""

import dataclasses
import itertools
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from diffussm_jax.config import Config
from diffussm_jax.diffusion import create_process
from diffussm_jax.evaluation.score import make_scorer
from diffussm_jax.files import require_only, write_json, write_text
from diffussm_jax.inspection import report as reports
from diffussm_jax.inspection.figures import Figure, figures
from diffussm_jax.inspection.inputs import clean_images, noised
from diffussm_jax.inspection.page import page, png
from diffussm_jax.inspection.perturbation import KINDS, Perturbed
from diffussm_jax.inspection.report import Report
from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.sampling.generator import Generator, make_decoder
from diffussm_jax.sampling.model import TrainedModel, load
from diffussm_jax.training.state import abstract_model, init_params
from diffussm_jax.workdir.inheritance import began_with_own_ssm
from diffussm_jax.workdir.lock import held, is_lock

logger = logging.getLogger(__name__)

FOLDER, REPORT_FILE, PAGE_FILE = "inspect", "inspect.json", "index.html"


def inspect(config: Config, workdir: Path) -> None:
    """Write `inspect.json`, pictures and `index.html` into `inspect/` of a run or an export.

    Weights and averages are chosen by `sample.ema` and `sample.ema_length`. One device computes,
    but for the images of `inspect.distance`.

    Raises:
        UserError: there is no run or checkpoint, it does not fit the config, or what
            `inspect.distance` needs is missing.
    """
    folder = workdir / FOLDER
    options = config.sample
    require_only(folder, _is_ours, named=str(folder))
    model = load(workdir, ema=options.ema, ema_length=options.ema_length, config=config)
    with held(folder, named=str(folder)):
        report, pictures = _inspect(config, workdir, model)
        if config.inspect.distance:
            _add_distances(config, workdir, model, report)
        _write(folder, report, pictures)


def _is_ours(name: str) -> bool:
    is_output = re.fullmatch(r"\.?([a-z0-9_]+\.png|inspect\.json|index\.html)", name)
    return is_lock(name) or is_output is not None


def _inspect(config: Config, workdir: Path, trained: TrainedModel) -> tuple[Report, list[Figure]]:
    config = dataclasses.replace(trained.config, data=config.data, inspect=config.inspect)
    options = config.inspect
    images = clean_images(config, trained)
    logger.info("looking at %d images: %s", len(images.x0), images.origin)
    graphdef, params = _on_one_device(trained)
    model = nnx.merge(graphdef, params)
    batches = [noised(config, images, level) for level in options.noise_levels]
    grid = model.token_grid(images.x0)
    layers = reports.look(config, model, batches)
    initial = None
    if began_with_own_ssm(workdir, config):
        initial = nnx.merge(graphdef, init_params(trained.config))
    drawn = reports.add_filters(layers, model, initial, grid)
    if options.perturb:
        logger.info("replacing the mixing of %d layers", len(layers))
        reports.add_perturbations(config, layers, graphdef, params, batches)
    report = {
        "step": trained.step,
        "images": images.origin,
        "grid": grid,
        "noise_levels": [at["noise_level"] for at in layers[0]["at"]],
        "settings": dataclasses.asdict(options),
        "layers": layers,
    }
    process = create_process(config.diffusion)
    x_t = [np.asarray(process.x_t(batch.x0, batch.t, batch.eps)) for batch in batches]
    return report, figures(report, drawn, x_t)


def _on_one_device(trained: TrainedModel) -> tuple[nnx.GraphDef, dict]:
    """The model by implementations that have tangents, and its parameters."""
    network = dataclasses.replace(trained.config.model, attention_implementation="xla")
    config = dataclasses.replace(trained.config, model=network)
    graphdef, _ = abstract_model(config, stack="xla")
    return graphdef, jax.device_put(trained.params, jax.local_devices()[0])


def _add_distances(config: Config, workdir: Path, trained: TrainedModel, report: Report) -> None:
    """Score images of the model, and of the model without each layer's mixing."""
    mesh = make_mesh(config.mesh)
    graphdef, _ = abstract_model(trained.config, mesh)
    decode = make_decoder(trained.config, workdir, mesh)

    def scores(layer: int, kind: str) -> dict[str, float]:
        def perturbed(graphdef: nnx.GraphDef) -> tuple[nnx.GraphDef, Any]:
            model = Perturbed(nnx.merge(graphdef, trained.params), layer, KINDS.index(kind))
            return nnx.split(model, nnx.Param)

        changed, params = perturbed(graphdef)
        generator = Generator(
            trained.config, changed, mesh, decode, change=lambda graphdef: perturbed(graphdef)[0]
        )
        logger.info("drawing without the mixing of layer %d (%s)", layer, kind)
        return make_scorer(config, workdir, generator)(nnx.to_pure_dict(params))

    unperturbed = scores(0, "none")
    for layer, kind in reports.perturbations(report["layers"]):
        layer.setdefault("scores", {"none": unperturbed})
        layer["scores"][kind] = scores(layer["layer"], kind)


def _write(folder: Path, report: Report, pictures: list[Figure]) -> None:
    for path in folder.glob("*.png"):  # of other layers or noise levels
        path.unlink()
    for figure in pictures:
        (folder / f"{figure.name}.png").write_bytes(png(figure.picture))
    write_json(folder / REPORT_FILE, reports.as_json(report))
    facts: dict[str, Any] = {name: report[name] for name in ("step", "images", "grid")}
    facts |= {"layers": "; ".join(_described(report["layers"]))}
    facts |= {"noise levels": reports.as_json(report["noise_levels"])}
    write_text(folder / PAGE_FILE, page("What the layers see", facts, pictures))
    logger.info("wrote %s", folder / PAGE_FILE)


def _described(layers: list[Report]) -> Iterator[str]:
    """The mixers of the layers, by stages of a U with the rows that they see."""
    for stage, members in itertools.groupby(layers, key=lambda layer: layer["stage"]):
        of_stage = list(members)
        mixers = [layer["mixer"] for layer in of_stage]
        if stage is None:
            yield ", ".join(mixers)
        else:
            height, width = of_stage[0]["grid"]
            tokens = f"{height} x {width} tokens of width {of_stage[0]['width']}"
            yield f"stage {stage} ({tokens}): {', '.join(mixers)}"
