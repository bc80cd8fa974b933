"""What is kept of the features of many images, and the scores of two such."""

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
    """Of the features of `num` images; None is what the extractor does not give or what was not kept."""

    num: int
    pool: Moments
    spatial: Moments | None
    inception_score: float | None
    classes: Int[np.ndarray, " n"] | None
    features: Float32[np.ndarray, "n d"] | None  # the pool features


def measure(
    extractor: Extractor, images: ImageSet, mesh: Mesh, *, batch_size: int, keep_features: bool
) -> Statistics:
    """Statistics of all images of a set; with `keep_features` also the features, for precision and recall.

    Raises:
        UserError: there are too few images, or they do not fit the extractor.
    """
    if len(images) <= NEIGHBOURS:
        raise UserError(f"scores take {NEIGHBOURS + 1} images or more, got {len(images)}")
    moments = {"pool": RunningMoments(), "spatial": RunningMoments()}
    score, kept = RunningInceptionScore(), {"classes": [], "pool": []}  # type: ignore[var-annotated]
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
    """Scores of samples by name, as many as there is what they take.

    Args:
        pool: moments of the reference's pool features.
        spatial: moments of its spatial features; None where it has none.
        features: the reference's pool features, for precision and recall.
        labels: the classes that the samples were asked for.
    """
    found = {"frechet_distance": frechet_distance(samples.pool, pool)}
    if samples.spatial is not None and spatial is not None:
        found["sfid"] = frechet_distance(samples.spatial, spatial)
    if samples.inception_score is not None:
        found["inception_score"] = samples.inception_score
    if samples.features is not None and features is not None:
        pair = precision_recall(features, samples.features)
        found["precision"], found["recall"] = pair
    if samples.classes is not None and labels is not None:
        found["class_agreement"] = float(np.mean(samples.classes == labels))
    return found
