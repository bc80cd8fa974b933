"""Statistics of the features of many images, and the scores that compare two of them."""

import dataclasses

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Int

from diffussm_jax.errors import UserError
from diffussm_jax.evaluation.features import Extractor, stream
from diffussm_jax.evaluation.image_sets import ImageSet
from diffussm_jax.evaluation.metrics import (
    NEIGHBOURS,
    Moments,
    RunningInceptionScore,
    RunningMoments,
    frechet_distance,
    precision_recall,
)


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Statistics of the features of `num` images.

    None stands for what the extractor does not give and for what was not kept.

    Attributes:
        classes: the class that the extractor finds likeliest, of each image.
        features: the pool features.
    """

    num: int
    pool: Moments
    spatial: Moments | None
    inception_score: float | None
    classes: Int[np.ndarray, " n"] | None
    features: Float32[np.ndarray, "n d"] | None


def measure(
    extractor: Extractor, images: ImageSet, mesh: Mesh, *, batch_size: int, keep_features: bool
) -> Statistics:
    """The statistics of all images of a set.

    Args:
        keep_features: keep the pool features, which precision and recall need.

    Raises:
        UserError: there are too few images, or they do not fit the extractor.
    """
    if len(images) <= NEIGHBOURS:
        raise UserError(f"scores take {NEIGHBOURS + 1} images or more, got {len(images)}")
    moments = {"pool": RunningMoments(), "spatial": RunningMoments()}
    score = RunningInceptionScore()
    kept: dict[str, list[np.ndarray]] = {"classes": [], "pool": []}
    for outputs in stream(extractor, images, mesh, batch_size=batch_size):
        for name in moments.keys() & outputs.keys():
            moments[name].add(outputs[name])
        if "probabilities" in outputs:
            score.add(outputs["probabilities"])
        if "classes" in outputs:
            kept["classes"].append(outputs["classes"])
        if keep_features:
            kept["pool"].append(np.asarray(outputs["pool"], np.float32))
    return Statistics(
        num=len(images),
        pool=moments["pool"].result(),
        spatial=moments["spatial"].result() if moments["spatial"].num else None,
        inception_score=score.result() if score.num else None,
        classes=np.concatenate(kept["classes"]) if kept["classes"] else None,
        features=np.concatenate(kept["pool"]) if kept["pool"] else None,
    )


def scores(
    samples: Statistics,
    *,
    pool: Moments,
    spatial: Moments | None,
    features: Float32[np.ndarray, "_ d"] | None,
    labels: Int[np.ndarray, " _"] | None,
) -> dict[str, float]:
    """The scores of samples by name; those whose ingredients are None are left out.

    Args:
        pool: moments of the reference's pool features.
        spatial: moments of its spatial features; None where it has none.
        features: the reference's pool features, for precision and recall.
        labels: the class that each sample was drawn for.
    """
    by_name = {"frechet_distance": frechet_distance(samples.pool, pool)}
    if samples.spatial is not None and spatial is not None:
        by_name["sfid"] = frechet_distance(samples.spatial, spatial)
    if samples.inception_score is not None:
        by_name["inception_score"] = samples.inception_score
    if samples.features is not None and features is not None:
        pair = precision_recall(features, samples.features)
        by_name["precision"], by_name["recall"] = pair
    if samples.classes is not None and labels is not None:
        by_name["class_agreement"] = float(np.mean(samples.classes == labels))
    return by_name
