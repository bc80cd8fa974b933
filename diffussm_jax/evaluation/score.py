"""Scores of a set of images, or of a run while it trains."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from diffussm_jax.config import Config, SampleConfig
from diffussm_jax.config.drawn import as_drawn
from diffussm_jax.errors import UserError
from diffussm_jax.evaluation.features import Extractor, make_extractor
from diffussm_jax.evaluation.image_sets import ArrayImages, ImageSet
from diffussm_jax.evaluation.presets import sample_options
from diffussm_jax.evaluation.reference import (
    Reference,
    note_other_images,
    read_reference,
    reference_path,
)
from diffussm_jax.evaluation.statistics import measure, scores
from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.sampling.generator import Generator

Scorer = Callable[[dict], dict[str, float]]


def score(
    config: Config, images: ImageSet, extractor: Extractor, reference: Reference, mesh: Mesh
) -> dict[str, float]:
    """The scores of images by name, as many as the extractor and the reference give.

    The Frechet distance of Inception features is called `fid`.

    Raises:
        UserError: the images are too few, or do not fit the extractor or the reference.
    """
    reference.require_shape(images.read(np.arange(1)).shape[1:])
    statistics = measure(
        extractor,
        images,
        mesh,
        batch_size=config.evaluate.batch_size,
        keep_features=reference.features is not None,
    )
    ours, theirs = (len(moments.mean) for moments in (statistics.pool, reference.pool))
    if ours != theirs:
        raise UserError(
            f"the images have {ours} {extractor.facts['features']} features, and the reference "
            f"{reference.facts['file']} has {theirs}: their sizes or channels differ"
        )
    by_name = scores(
        statistics,
        pool=reference.pool,
        spatial=reference.spatial,
        features=reference.features,
        labels=images.labels,
    )
    if extractor.facts["features"] == "inception":
        return {"fid": by_name.pop("frechet_distance")} | by_name
    return by_name


def drawn_shape(config: Config, options: SampleConfig) -> tuple[int, int, int]:
    """The shape (h, w, c) of an image that a model of the config draws."""
    data = as_drawn(options, config).data
    return *data.sides, data.channels


def make_scorer(config: Config, workdir: Path, generator: Generator) -> Scorer:
    """For `training.evaluate_every`: a function from parameters to scores by name.

    It draws `evaluate.training_num` images. Scores of so few images differ from those of 50,000:
    compare them only with one another.

    Raises:
        UserError: the reference or the extractor is missing or does not fit; here, at the start of
            the run, not hours later.
    """
    mesh, extractor = make_mesh(), make_extractor(config, workdir)
    path, batch_size = reference_path(config, workdir), config.evaluate.batch_size
    reference = read_reference(path, extractor, mesh, batch_size=batch_size)
    note_other_images(reference, workdir)
    num = config.evaluate.training_num
    options = dataclasses.replace(sample_options(config), num=num)
    reference.require_shape(drawn_shape(config, options))

    def scorer(params: dict) -> dict[str, float]:
        images = ArrayImages(*generator.draw(params, options), facts={})
        by_name = score(config, images, extractor, reference, mesh)
        return {f"score_{name}": value for name, value in by_name.items()}

    return scorer
