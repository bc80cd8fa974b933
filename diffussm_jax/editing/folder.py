"""A folder of images to edit: their names, masks and labels."""

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from diffussm_jax.config import Config
from diffussm_jax.config.drawn import as_drawn
from diffussm_jax.data.image_files import find_images, read_file, readable
from diffussm_jax.data.transforms import centre_crop, decode_image, pad_with_black
from diffussm_jax.errors import UserError
from diffussm_jax.files.paths import as_path
from diffussm_jax.sampling.edit_sources import Sources, edited_size, make_sources
from diffussm_jax.sampling.images import LabelArray

FIELD = "config.edit.images"
RESERVED = ("grid", "parts")  # names of what else lies among the results
_MASK = ".mask"  # before the suffix of a file that is a mask

Crop = Callable[[Image.Image], UInt8[np.ndarray, "h w c"]]


class FolderToEdit(NamedTuple):
    """The images of a folder, ready to edit.

    Attributes:
        files: their paths in the folder.
        names: those of their results, without suffix.
    """

    files: list[str]
    names: list[str]
    sources: Sources


def read_folder(config: Config, class_names: list[str] | None) -> FolderToEdit:
    """Read the images that `edit.images` names, in the order of their names.

    They are decoded and cropped as for training, and masks with them.

    Args:
        class_names: of the model, for labels by sub-folder.

    Raises:
        UserError: there are none or too few, or one cannot be read, or its mask or label.
    """
    if config.edit.images is None:
        raise UserError(f"{FIELD} must be given for --mode=edit: the folder of the images")
    folder = as_path(config.edit.images)
    config = as_drawn(config.sample, config)
    paths = [x for x in find_images(folder, field=FIELD).paths if not x.stem.endswith(_MASK)]
    least = 2 if config.edit.kind == "interpolate" else 1
    if len(paths) < least:
        raise UserError(
            f"{FIELD}: {readable(folder)} has {len(paths)} images besides masks, and "
            f"edit.kind = {config.edit.kind!r} needs {least} or more"
        )
    files = [path.relative_to(folder) for path in paths]
    has_masks = config.edit.kind == "inpaint" and config.edit.rectangle is None
    crop, images, masks = _crop(config), [], []
    for path in paths:
        image = _read(path, config, channels=config.data.channels)
        images.append(crop(image))
        if has_masks:
            masks.append(_mask(path, image, config, crop))
    labels = _labels(config, files, class_names)
    stacked = np.stack(masks) if has_masks else None
    sources = make_sources(config, np.stack(images), stacked, labels)
    return FolderToEdit([readable(x) for x in files], _names(files), sources)


def _names(files: list[Path]) -> list[str]:
    """Names of results, by which no two may be one file."""
    names = [readable(path.with_suffix("")) for path in files]
    name, num = Counter(names).most_common(1)[0]
    if num > 1:
        raise UserError(f"{FIELD}: {num} images would both be edit/{name}.png: rename one")
    for path in files:
        name = path.with_suffix("").parts[0]
        if name in RESERVED:
            raise UserError(f"{FIELD}: rename {readable(path)}: edit/ has a {name} of its own")
    return names


def _crop(config: Config) -> Crop:
    """The crop of training; for outpainting, to the form of the rectangle."""
    height, width = edited_size(config)
    pad = 0 if config.edit.kind == "outpaint" else config.data.pad
    size = height - 2 * pad, width - 2 * pad
    return lambda image: pad_with_black(centre_crop(image, size), pad)


def _read(path: Path, config: Config, *, channels: int) -> Image.Image:
    data = read_file(path, field=FIELD)
    try:
        return decode_image(data, channels=channels, max_pixels=config.data.max_pixels)
    except Exception as error:  # Pillow's decoders raise anything at all for damaged bytes
        raise UserError(f"{FIELD}: {readable(path)} cannot be read: {error}") from error


def _mask(path: Path, image: Image.Image, config: Config, crop: Crop) -> Bool[np.ndarray, "h w"]:
    """The mask beside an image: white, or transparent, is drawn anew."""
    mask_path = path.with_name(f"{path.stem}{_MASK}.png")
    if not mask_path.is_file():
        raise UserError(
            f"{FIELD}: {readable(path)} has no mask {readable(mask_path.name)}: white in it is "
            "drawn anew; or give config.edit.rectangle"
        )
    picture, named = _read(mask_path, config, channels=1), f"{FIELD}: {readable(mask_path)}"
    if picture.size != image.size:
        raise UserError(
            f"{named} is {picture.width} x {picture.height} pixels, and its image "
            f"{image.width} x {image.height}: they must be of one size"
        )
    mask = crop(picture)[..., 0] >= 128
    if not mask.any():
        raise UserError(f"{named} has no white in the part of the image that is kept")
    if np.asarray(picture).min() == 255 and _is_transparent(mask_path):
        raise UserError(
            f"{named} is white both where it is transparent and where it is not: put black below"
        )
    return mask


def _is_transparent(path: Path) -> bool:
    with Image.open(io.BytesIO(read_file(path, field=FIELD))) as picture:
        return picture.has_transparency_data


def _labels(config: Config, files: list[Path], class_names: list[str] | None) -> LabelArray | None:
    if config.edit.labels != "folders":
        return None
    num_classes = config.data.num_classes
    numbers = {str(number): number for number in range(num_classes)}
    known = numbers | {name: number for number, name in enumerate(class_names or ())}
    labels = []
    for path in files:
        folder = path.parts[0] if len(path.parts) > 1 else ""
        if folder not in known:
            raise UserError(
                f"{FIELD}: {readable(path)} is in no folder of a class, which config.edit.labels = "
                f"'folders' needs: a class's name or number below {num_classes}"
            )
        labels.append(known[folder])
    return np.asarray(labels, np.int32)
