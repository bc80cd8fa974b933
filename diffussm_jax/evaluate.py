"""`--mode=evaluate`: scores of a run, or of anybody's images, with all that made them."""

import dataclasses
import importlib.metadata
import json
import logging
import platform
from pathlib import Path
from typing import Any

import jax

from diffussm_jax.config import Config
from diffussm_jax.evaluation.features import Extractor, make_extractor
from diffussm_jax.evaluation.image_sets import DrawnImages, ImageSet, open_given
from diffussm_jax.evaluation.presets import sample_options
from diffussm_jax.evaluation.reference import Reference
from diffussm_jax.evaluation.score import open_reference, score
from diffussm_jax.files import write_text
from diffussm_jax.parallel.distributed import is_first
from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.sampling.job import draw_to
from diffussm_jax.sampling.model import load
from diffussm_jax.workdir import layout

logger = logging.getLogger(__name__)

PACKAGES = ("diffussm-jax", "flax", "jax", "jaxlib", "numpy", "pillow")


def evaluate(config: Config, workdir: Path) -> None:
    """Write `evaluation/<name>.json` into a work directory: scores of images that its model draws, or of `evaluate.images`.

    What the model draws stays in `evaluation/<preset>/`: after a kill the same command goes on, and other features are scored of it.

    Raises:
        UserError: the run, the images, the reference or the extractor is missing or does not fit.
    """
    path, mesh = result_path(config, workdir), make_mesh()
    extractor = make_extractor(config, workdir)
    reference = open_reference(config, workdir, extractor, mesh)
    if config.evaluate.images is None:
        images = _drawn(config, workdir)
    else:
        images = open_given(config.evaluate.images, channels=config.data.channels)
    found = score(config, images, extractor, reference, mesh)
    result = {"scores": found} | ingredients(config, images, extractor, reference)
    if not is_first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(result, indent=1) + "\n")
    for name, value in found.items():
        logger.info("%-17s %.4f", name, value)
    logger.info("wrote %s", path)


def result_path(config: Config, workdir: Path) -> Path:
    name = config.evaluate.name or config.evaluate.preset or "default"
    return workdir / "evaluation" / f"{name}.json"


def _drawn(config: Config, workdir: Path) -> ImageSet:
    layout.require_same_model(workdir, config)
    options = sample_options(config)
    model = load(workdir, ema=options.ema, ema_length=options.ema_length, config=config)
    logger.info("sampling %d images from step %d", options.num, model.step)
    # Not by the result's name: other features of the same images draw nothing again.
    folder = workdir / "evaluation" / (config.evaluate.preset or "default")
    return DrawnImages(draw_to(folder, model, options))


def ingredients(
    config: Config, images: ImageSet, extractor: Extractor, reference: Reference
) -> dict[str, Any]:
    """All that made a score, as JSON."""
    return {
        "num_images": len(images),
        "preset": config.evaluate.preset,
        "images": images.facts(),
        "extractor": extractor.facts,
        "reference": reference.facts,
        "config": dataclasses.asdict(config),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
