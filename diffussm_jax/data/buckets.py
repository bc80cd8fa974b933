"""Aspect buckets: the images of a folder in a few shapes, each cropped to that nearest its own.

A batch has images of one bucket, and the buckets take turns as often as they have images.
"""

import dataclasses
import io
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image

from diffussm_jax.config import Config
from diffussm_jax.data.formats import set_up_pillow
from diffussm_jax.errors import CommandEnd
from diffussm_jax.files import one_writer, replacing, writing_to

Sizes = Int[np.ndarray, "n 2"]  # height and width of each image; 0 where nothing can read it
Record = dict[str, Any]

EXIF_ORIENTATION = 0x0112
TURNED = (5, 6, 7, 8)  # by a quarter turn

logger = logging.getLogger(__name__)


def of_one_size(config: Config) -> Config:
    """The config without buckets: all images have `data.image_size`."""
    data = dataclasses.replace(config.data, buckets=None)
    return dataclasses.replace(config, data=data)


def of_bucket(config: Config, sides: tuple[int, int]) -> Config:
    """The config of the images of one bucket, which remains one of several."""
    data = dataclasses.replace(config.data, image_size=sides)
    return dataclasses.replace(config, data=data)


def assign(sizes: Sizes, shapes: Sequence[tuple[int, int]]) -> list[Int[np.ndarray, " k"]]:
    """For each shape the indices of the images whose aspect ratio is nearest to its own.

    Ratios are compared by their logarithms. An image of an unknown size goes to the first shape,
    and is a bad record when it is read.
    """
    known = np.where(sizes > 0, sizes, shapes[0]).astype(float)
    ratios, wanted = (np.log(x[:, 1] / x[:, 0]) for x in (known, np.asarray(shapes, float)))
    nearest = np.abs(ratios[:, None] - wanted).argmin(axis=1)
    return [np.flatnonzero(nearest == number) for number in range(len(shapes))]


def read_sizes(records: Sequence[Record], path: Path, *, field: str) -> Sizes:
    """The sizes of all images, from their heads; they are read once, and kept in a file.

    Raises:
        UserError: the file cannot be written.
    """
    if path.exists():
        return _load(path)
    with writing_to(path, field=field), one_writer(path):
        if path.exists():  # by now: another process read them
            return _load(path)
        logger.info("reading the sizes of %d images (once)", len(records))
        with ThreadPoolExecutor() as pool:
            rows = pool.map(lambda index: _size(records, index), range(len(records)))
            sizes = np.array(list(rows), np.int32)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, sizes)
        return sizes


def _load(path: Path) -> Sizes:
    with path.open("rb") as file:
        return np.load(file)


def _size(records: Sequence[Record], index: int) -> tuple[int, int]:
    set_up_pillow()
    # The reader of the image names what is wrong with it; here Pillow raises anything at all.
    try:
        data = records[index]["image"]
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            orientation = image.getexif().get(EXIF_ORIENTATION)
    except CommandEnd:  # of a bucket
        raise
    except Exception:  # noqa: BLE001
        return 0, 0
    return (width, height) if orientation in TURNED else (height, width)
