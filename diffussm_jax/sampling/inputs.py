"""What each image of a job depends on: its key and its label."""

import functools

import jax
import numpy as np
from jaxtyping import Array, Int

from diffussm_jax.config import SampleConfig
from diffussm_jax.sampling.images import LabelArray
from diffussm_jax.shapes import ImageKeys

# Folded into an image's key to draw its label; the steps of a sampler fold in smaller numbers.
LABEL_STREAM = 2**31 - 1


def image_keys(seed: int | Array, indices: Int[Array, " b"]) -> ImageKeys:
    """The key of each image, a function of the seed and of the image's index in the job."""
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(indices)


def image_labels(
    options: SampleConfig, num_classes: int, indices: Int[np.ndarray, " b"]
) -> LabelArray | None:
    """The label of each image, int32; None where the model has no classes.

    `options.labels` decides: drawn from the image's key, every class in turn, or those of
    `options.classes` in turn.
    """
    if not num_classes:
        return None
    if options.labels == "random":
        indices = indices.astype(np.int32)
        return np.asarray(_random_labels(options.seed, indices, num_classes=num_classes))
    classes = options.classes if options.labels == "list" else range(num_classes)
    in_turn = np.asarray(classes, np.int32)
    return in_turn[indices % len(in_turn)]


@functools.partial(jax.jit, static_argnames="num_classes")
def _random_labels(
    seed: int | Array, indices: Int[Array, " b"], *, num_classes: int
) -> Int[Array, " b"]:
    def draw_label(key: Array) -> Array:
        stream = jax.random.fold_in(key, LABEL_STREAM)
        return jax.random.randint(stream, (), 0, num_classes)

    return jax.vmap(draw_label)(image_keys(seed, indices))
