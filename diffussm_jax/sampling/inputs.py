"""What each image of a job depends on: its key and its label."""

import functools

import jax
import numpy as np
from jaxtyping import Array, Int

from diffussm_jax.config import SampleConfig
from diffussm_jax.sampling.images import LabelArray
from diffussm_jax.shapes import ImageKeys

LABEL_STREAM = 2**31 - 1  # of an image's key; below it are the steps'


def image_keys(seed: int | Array, indices: Int[Array, " b"]) -> ImageKeys:
    """The key of each image: a function of the seed and its index in the job."""
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(indices)


def image_labels(
    options: SampleConfig, num_classes: int, indices: Int[np.ndarray, " b"]
) -> LabelArray | None:
    """The label of each image, int32: drawn from its key, every class in turn, or the list's in turn; None without classes."""
    if not num_classes:
        return None
    if options.labels == "random":
        indices = indices.astype(np.int32)
        return np.asarray(_random_labels(options.seed, indices, num_classes=num_classes))
    listed = options.classes if options.labels == "list" else range(num_classes)
    classes = np.asarray(listed, np.int32)
    return classes[indices % len(classes)]


@functools.partial(jax.jit, static_argnames="num_classes")
def _random_labels(seed: int | Array, indices: Int[Array, " b"], *, num_classes: int):
    def draw(key):
        stream = jax.random.fold_in(key, LABEL_STREAM)
        return jax.random.randint(stream, (), 0, num_classes)

    return jax.vmap(draw)(image_keys(seed, indices))
