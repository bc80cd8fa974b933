"""Scores of a set of images, or of a run while it trains."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from jax.sharding import Mesh

from diffussm_jax.config import Config
from diffussm_jax.errors import UserError
from diffussm_jax.evaluation.features import Extractor, make_extractor
from diffussm_jax.evaluation.image_sets import ArrayImages, ImageSet
from diffussm_jax.evaluation.presets import sample_options
from diffussm_jax.evaluation.reference import Reference, reference_path
from diffussm_jax.evaluation.statistics import measure, scores
from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.sampling.generator import Generator

Scorer = Callable[[dict], dict[str, float]]


def score(
    config: Config, images: ImageSet, extractor: Extractor, reference: Reference, mesh: Mesh
) -> dict[str, float]:
    """Scores of images by name, as many as the extractor and the reference give; FID is Inception's Frechet distance.

    Raises:
        UserError: they are too few, or do not fit the extractor or the reference.
    """
    found = measure(
        extractor,
        images,
        mesh,
        batch_size=config.evaluate.batch_size,
        keep_features=reference.features is not None,
    )
    ours, theirs = (len(moments.mean) for moments in (found.pool, reference.pool))
    if ours != theirs:
        raise UserError(
            f"the images have {ours} {extractor.facts['features']} features, and the reference "
            f"{reference.facts['file']} has {theirs}: their sizes or channels differ"
        )
    compared = scores(
        found,
        pool=reference.pool,
        spatial=reference.spatial,
        features=reference.features,
        labels=images.labels,
    )
    if extractor.facts["features"] == "inception":
        return {"fid": compared.pop("frechet_distance")} | compared
    return compared


def open_reference(config: Config, workdir: Path, extractor: Extractor, mesh: Mesh) -> Reference:
    """The reference that a config names, or the work directory's own."""
    path = reference_path(config, workdir)
    return Reference(path, extractor, mesh, batch_size=config.evaluate.batch_size)


def make_scorer(config: Config, workdir: Path, generator: Generator) -> Scorer:
    """For `training.evaluate_every`: a function from parameters to the scores, by name, of `evaluate.training_num` images.

    Fewer images than a published score has make another number: compare such scores with one another alone.

    Raises:
        UserError: the reference or the extractor is missing or does not fit; at the start, not hours later.
    """
    mesh, extractor = make_mesh(), make_extractor(config, workdir)
    reference = open_reference(config, workdir, extractor, mesh)
    num = config.evaluate.training_num
    options = dataclasses.replace(sample_options(config), num=num)

    def scorer(params: dict) -> dict[str, float]:
        images = ArrayImages(*generator.draw(params, options), facts={})
        found = score(config, images, extractor, reference, mesh)
        return {f"score_{name}": value for name, value in found.items()}

    return scorer
