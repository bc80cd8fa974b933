"""`--mode=evaluate`: scores of a run's images or of given ones, with everything that made them."""

import contextlib
import dataclasses
import importlib.metadata
import logging
import platform
from pathlib import Path
from typing import Any

import jax

import diffussm_jax
from diffussm_jax.config import Config
from diffussm_jax.evaluation.features import Extractor, make_extractor
from diffussm_jax.evaluation.image_sets import DrawnImages, ImageSet, open_given
from diffussm_jax.evaluation.presets import sample_options
from diffussm_jax.evaluation.reference import (
    Reference,
    note_other_images,
    read_reference,
    reference_path,
)
from diffussm_jax.evaluation.score import drawn_shape, score
from diffussm_jax.files import write_json
from diffussm_jax.parallel.distributed import is_first
from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.sampling.model import sampled
from diffussm_jax.workdir.layout import read_config
from diffussm_jax.workdir.lock import held
from diffussm_jax.workdir.ownership import require_ours

logger = logging.getLogger(__name__)

PACKAGES = ("flax", "jax", "jaxlib", "numpy", "pillow")


def evaluate(config: Config, workdir: Path) -> None:
    """Score the images that the run's model draws, or `evaluate.images`.

    The result is `evaluation/<name>.json` in the work directory. What the model draws stays in
    `evaluation/<preset>/`: after a kill the same command goes on, and other features of the same
    images are scored without drawing them again.

    Raises:
        UserError: the run, the images, the reference or the extractor is missing or does not fit.
    """
    require_ours(workdir)
    path = result_path(config, workdir)
    with contextlib.ExitStack() as stack:
        named = f"config.evaluate.name: {path}"
        stack.enter_context(held(path.parent, named=named, file=f".{path.name}.lock"))
        _evaluate(config, workdir, path, stack)


def _evaluate(config: Config, workdir: Path, path: Path, stack: contextlib.ExitStack) -> None:
    mesh = make_mesh()
    extractor = make_extractor(config, workdir)
    reference = read_reference(
        reference_path(config, workdir), extractor, mesh, batch_size=config.evaluate.batch_size
    )
    note_other_images(reference, workdir)
    if config.evaluate.images is None:  # known before they are drawn, which takes long
        shape = drawn_shape(read_config(workdir), sample_options(config))
        reference.require_shape(shape)
    images = _open_images(config, workdir, stack)
    scores = score(config, images, extractor, reference, mesh)
    result = {"scores": scores} | ingredients(config, images, extractor, reference)
    if not is_first():
        return
    write_json(path, result)
    for name, value in scores.items():
        logger.info("%-17s %.4f", name, value)
    logger.info("wrote %s", path)


def result_path(config: Config, workdir: Path) -> Path:
    """Where the result of an evaluation is kept: under its name, else its preset's."""
    name = config.evaluate.name or config.evaluate.preset or "default"
    return workdir / "evaluation" / f"{name}.json"


def _open_images(config: Config, workdir: Path, stack: contextlib.ExitStack) -> ImageSet:
    """The images to score; what the model draws is held until the end of `stack`."""
    if config.evaluate.images is not None:
        return open_given(config.evaluate.images, config.data)
    # Not named after the result, which may be one of several of the same images.
    folder = workdir / "evaluation" / (config.evaluate.preset or "default")
    samples = stack.enter_context(sampled(config, workdir, sample_options(config), folder))
    return DrawnImages(samples)


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
        "versions": {"diffussm-jax": diffussm_jax.__version__}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
