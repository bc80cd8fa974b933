"""The images that an edit begins with, checked: their masks and labels beside them."""

import hashlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from diffussm_jax.config import Config, EditConfig
from diffussm_jax.config.drawn import as_drawn
from diffussm_jax.config.editing_rules import require_fitting
from diffussm_jax.errors import UserError
from diffussm_jax.sampling.images import ImageArray, LabelArray

MaskArray = Bool[np.ndarray, "b h w"]  # True is drawn anew


class Sources(NamedTuple):
    """Images to edit, of the model's size.

    Attributes:
        masks: what is drawn anew of each image, for inpainting.
        labels: the class of each image, or the number of classes for none; None for a model that
            has none.
    """

    images: ImageArray
    masks: MaskArray | None
    labels: LabelArray | None

    def sha256(self) -> str:
        """SHA-256 of all of it, in hexadecimal."""
        digest = hashlib.sha256()
        for array in self:
            if array is not None:
                digest.update(repr((array.shape, array.dtype.str)).encode() + array.tobytes())
        return digest.hexdigest()


def make_sources(
    config: Config,
    images: np.ndarray,
    masks: np.ndarray | None = None,
    labels: LabelArray | None = None,
) -> Sources:
    """Check the images, and add masks of the rectangle and labels as the edit section says.

    Args:
        images: uint8 [num h w c] of the model's size; for outpainting, of the rectangle's.
        masks: bool [num h w]; None for the rectangle.
        labels: instead of those that `edit.labels` says.

    Raises:
        UserError: there are none, they have another form, or a mask is missing or covers nothing.
    """
    edit = config.edit
    require_fitting(config)
    config = as_drawn(config.sample, config)
    images, size = np.asarray(images), edited_size(config)
    shape = *size, config.data.channels
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
        raise UserError(
            f"images must be uint8 [num, {', '.join(map(str, shape))}], got {images.dtype} "
            f"{list(images.shape)}"
        )
    least = 2 if edit.kind == "interpolate" else 1
    if len(images) < least:
        raise UserError(
            f"edit.kind = {edit.kind!r} needs {least} images or more, got {len(images)}"
        )
    if edit.kind == "outpaint":
        images, masks = _placed(config, images)
    elif edit.kind == "inpaint":
        masks = _masks(config, masks, images)
    elif masks is not None:
        raise UserError(f"masks must be left out for edit.kind = {edit.kind!r}")
    return Sources(images, masks, _labels(config, len(images)) if labels is None else labels)


def num_results(edit: EditConfig, num_images: int) -> int:
    """The number of results: `num` of each image, or between each and the next."""
    return edit.num * (num_images - (edit.kind == "interpolate"))


def edited_size(config: Config) -> tuple[int, int]:
    """Height and width of the images to edit: those that are drawn, or for outpainting less."""
    if config.edit.kind != "outpaint" or config.edit.rectangle is None:
        return config.data.sides
    _, _, height, width = config.edit.rectangle
    return height, width


def _rectangles(config: Config, num: int) -> MaskArray:
    assert config.edit.rectangle is not None
    top, left, height, width = config.edit.rectangle
    masks = np.zeros((num, *config.data.sides), bool)
    masks[:, top : top + height, left : left + width] = True
    return masks


def _placed(config: Config, images: np.ndarray) -> tuple[ImageArray, MaskArray]:
    """Images [b h w c] in the rectangle, with their edges drawn out to those of the model's images.

    What is around an image is masked, but an autoencoder sees it.
    """
    assert config.edit.rectangle is not None
    top, left, height, width = config.edit.rectangle
    rows, columns = config.data.sides
    below, right = rows - top - height, columns - left - width
    around = (0, 0), (top, below), (left, right), (0, 0)
    return np.pad(images, around, mode="edge"), ~_rectangles(config, len(images))


def _masks(config: Config, masks: np.ndarray | None, images: ImageArray) -> MaskArray:
    if (masks is None) == (config.edit.rectangle is None):
        raise UserError("either edit.rectangle or masks must be given for edit.kind = 'inpaint'")
    masks = _rectangles(config, len(images)) if masks is None else np.asarray(masks)
    if masks.dtype != bool or masks.shape != images.shape[:3]:
        raise UserError(
            f"masks must be bool {list(images.shape[:3])}, as the images are, got {masks.dtype} "
            f"{list(masks.shape)}"
        )
    empty = np.flatnonzero(~masks.any(axis=(1, 2)))
    if len(empty):
        raise UserError(f"the mask of image {empty[0]} covers nothing: True is drawn anew")
    return masks


def _labels(config: Config, num: int) -> LabelArray | None:
    num_classes = config.data.num_classes
    if not num_classes:
        return None
    classes = np.asarray(config.edit.classes or (num_classes,), np.int32)
    return classes[np.arange(num) % len(classes)]
