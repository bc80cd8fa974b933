"""What scores compare: features of images. A feature extractor is a function from images to arrays.

It takes uint8 images [b h w c] and returns by name, all but `pool` optional:
    pool [b d]            for the Frechet distance, precision and recall
    spatial [b s]         for sFID
    probabilities [b k]   for the Inception Score
    classes [b]           likeliest of the run's classes, for the agreement with the labels
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, UInt8

from diffussm_jax.config import Config
from diffussm_jax.data.transforms import from_uint8
from diffussm_jax.errors import UserError
from diffussm_jax.evaluation import classifier
from diffussm_jax.evaluation.image_sets import ImageSet, batches_of
from diffussm_jax.evaluation.inception import CONVERT, PUBLISHED_SHA256, inception, load_inception
from diffussm_jax.parallel.feed import place, shard_batch, to_host
from diffussm_jax.parallel.mesh import local_rows, num_batch_parts, replicated, split_over_batch
from diffussm_jax.shapes import ceil_div

Outputs = dict[str, Array]

MAX_PIXELS = 4096  # their covariance takes 128 MiB


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A feature extractor, called as function(params, images).

    Attributes:
        facts: what identifies the features, as JSON: a name, and the checksum of the weights.
    """

    function: Callable[[Any, UInt8[Array, "b h w c"]], Outputs]
    params: Any
    facts: dict[str, Any]


def make_extractor(config: Config, workdir: Path | None) -> Extractor:
    """The extractor that `evaluate.features` names.

    Raises:
        UserError: there is none of that name, or its weights are missing or damaged.
    """
    name = config.evaluate.features
    if name == "inception":
        return _inception_extractor(config)
    if name == "pixels":
        return Extractor(_pixels, (), {"features": name})
    if name == "classifier":
        params, facts = classifier.find_or_train(config, workdir)
        return Extractor(classifier.features, params, {"features": name} | facts)
    return Extractor(_import_function(name), (), {"features": name})


def _inception_extractor(config: Config) -> Extractor:
    path = config.evaluate.weights
    if path is None:
        raise UserError(
            f"config.evaluate.weights: inception needs its weights, a file made with {CONVERT}"
        )
    weights, hashes = load_inception(path)
    published = hashes["source_sha256"].startswith(PUBLISHED_SHA256)
    facts = {"features": "inception", "published": published} | hashes
    return Extractor(_inception_features, weights, facts)


def _inception_features(weights: Any, images: UInt8[Array, "b h w c"]) -> Outputs:
    # Of grey images all three colours are the grey.
    colours = jnp.broadcast_to(images, (*images.shape[:-1], 3))
    return inception(weights, colours)


def _pixels(_: Any, images: UInt8[Array, "b h w c"]) -> Outputs:
    if images[0].size > MAX_PIXELS:
        raise UserError(
            f"config.evaluate.features: 'pixels' is for images of at most {MAX_PIXELS} values, "
            f"and these have {images[0].size}: use 'inception' or 'classifier'"
        )
    return {"pool": from_uint8(images).reshape(len(images), -1)}


def _import_function(name: str) -> Callable[[Any, Array], Outputs]:
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            "config.evaluate.features must be inception, pixels, classifier or the module:function "
            f"of a function from uint8 images to arrays by name, got {name!r} ({error})"
        ) from error
    return lambda _, images: function(images)


def stream(
    extractor: Extractor, images: ImageSet, mesh: Mesh, *, batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the features of all images in turn, a batch at a time, on every host.

    Batches are split over the devices, and each process reads the part of its own devices. The next
    batch is read while the devices compute.
    """
    num_parts = num_batch_parts(mesh)
    size = ceil_div(min(batch_size, len(images)), num_parts) * num_parts
    mine = local_rows(mesh, size)
    run = _compile(extractor.function, mesh)
    everywhere = jax.tree.map(lambda _: replicated(mesh), extractor.params)
    params = place(extractor.params, everywhere)
    waiting: list[tuple[int, Outputs]] = []
    for rows in batches_of(len(images), size):
        # A batch that is not full repeats its last image: another size would compile again.
        padded = np.minimum(rows[0] + mine, rows[-1])
        batch = {"image": images.read(padded)}
        outputs = run(params, shard_batch(mesh, batch, batch_size=size)["image"])
        waiting.append((len(rows), outputs))
        if len(waiting) > 1:
            yield _first_rows(*waiting.pop(0))
    yield from (_first_rows(*x) for x in waiting)


def _first_rows(num: int, outputs: Outputs) -> dict[str, np.ndarray]:
    return {name: to_host(array)[:num] for name, array in outputs.items()}


@functools.cache
def _compile(function: Callable, mesh: Mesh) -> Callable:
    return jax.jit(function, out_shardings=split_over_batch(mesh))
