"""Sets of images to score: an npz in ADM's form, a folder, a data set, or what a model drew."""

import abc
import functools
import hashlib
import logging
import os
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from diffussm_jax.config import Config, DataConfig
from diffussm_jax.data.buckets import of_one_size
from diffussm_jax.data.faults import Faults
from diffussm_jax.data.image_files import find_images, read_file, readable, sha256_of_image
from diffussm_jax.data.pipeline import MAX_WORKERS, read_good
from diffussm_jax.data.sources import open_images
from diffussm_jax.data.transforms import decode_image, describe_crop
from diffussm_jax.errors import UserError
from diffussm_jax.files import NPZ_ERRORS, array_header, seekable, sha256_of
from diffussm_jax.files.paths import as_path
from diffussm_jax.sampling.images import ImageArray
from diffussm_jax.sampling.job import Samples

Rows = Int[np.ndarray, " b"]

logger = logging.getLogger(__name__)

FIELD = "config.evaluate.images"


class ImageSet(abc.ABC):
    """Images of one size, read a batch at a time.

    Attributes:
        labels: the class of each image; None where it is not known.
    """

    labels: Int[np.ndarray, " n"] | None = None

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def facts(self) -> dict[str, Any]:
        """Where the images are from, as JSON; for files, with their checksum."""

    @abc.abstractmethod
    def read(self, rows: Rows) -> ImageArray:
        """The images at the positions `rows`, which must not fall."""


class ArrayImages(ImageSet):
    """Images in memory."""

    def __init__(
        self, images: ImageArray, labels: np.ndarray | None = None, *, facts: dict[str, Any]
    ):
        self._images, self.labels, self._facts = images, labels, facts

    def __len__(self) -> int:
        return len(self._images)

    def facts(self) -> dict[str, Any]:
        return self._facts

    def read(self, rows: Rows) -> ImageArray:
        return self._images[rows]


class DrawnImages(ImageSet):
    """Images that a model drew, in the files of a finished job."""

    def __init__(self, samples: Samples):
        self._samples, self.labels = samples, samples.labels
        self._part: tuple[int, ImageArray] | None = None

    def __len__(self) -> int:
        return self._samples.num

    def facts(self) -> dict[str, Any]:
        return self._samples.facts

    def read(self, rows: Rows) -> ImageArray:
        numbers, places = np.divmod(rows, self._samples.range_size)
        parts = [
            self._load(number)[places[numbers == number]] for number in np.unique(numbers).tolist()
        ]
        return np.concatenate(parts)

    def _load(self, number: int) -> ImageArray:
        if self._part is None or self._part[0] != number:
            self._part = number, self._samples.part(number)
        return self._part[1]


class NpzImages(ImageSet):
    """The images `arr_0` of an npz, uint8 [num h w c], and its labels `arr_1`, if it has some.

    The images are read a batch at a time, from the first to the last.

    Args:
        field: the field of the config that names the file, for errors.

    Raises:
        UserError: the file is missing, damaged or of another form.
    """

    def __init__(self, path: str | Path, *, field: str = FIELD):
        self._path, self._name = as_path(path), f"{field}: {path}"
        try:
            self._archive = zipfile.ZipFile(seekable(self._path))
            self._file = self._archive.open("arr_0.npy")
            self._shape, dtype = array_header(self._file)
            self.labels = _read_labels(self._path, self._shape[0])
        except NPZ_ERRORS as error:
            raise UserError(
                f"{self._name} is not an npz of images in `arr_0`, or a damaged one: {error}"
            ) from error
        is_image = len(self._shape) == 4 and self._shape[3] in (1, 3) and 0 not in self._shape
        if dtype != np.uint8 or not is_image:
            raise UserError(
                f"{self._name}: arr_0 must be uint8 [num, height, width, 1 or 3], got {dtype} "
                f"{list(self._shape)}"
            )
        self._start = self._file.tell()

    def __len__(self) -> int:
        return self._shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (h, w, c) of an image."""
        return self._shape[1:]

    def facts(self) -> dict[str, Any]:
        return {"file": self._path.name, "sha256": sha256_of(self._path)}

    def read(self, rows: Rows) -> ImageArray:
        first, last = int(rows[0]), int(rows[-1])
        size = int(np.prod(self._shape[1:]))
        try:
            self._file.seek(self._start + first * size)
            data = self._file.read((last + 1 - first) * size)
        except NPZ_ERRORS as error:
            raise UserError(f"{self._name} is damaged at image {first}: {error}") from error
        if len(data) < (last + 1 - first) * size:
            raise UserError(f"{self._name} ends before its image {last}")
        images = np.frombuffer(data, np.uint8).reshape(-1, *self._shape[1:])
        return images[rows - first]


def _read_labels(path: Path, num: int) -> np.ndarray | None:
    with np.load(seekable(path)) as arrays:
        labels = arrays.get("arr_1")
    if labels is None or labels.shape != (num,) or labels.dtype.kind not in "iu":
        return None
    return labels


class FileImages(ImageSet):
    """The images of a folder and its sub-folders, in the order of their names.

    They are found and decoded as training does, but all must have one size: resizing takes a
    filter, and the scores depend on which.

    Raises:
        UserError: the folder has no images, or one that cannot be read or has another size.
    """

    def __init__(self, folder: str | Path, config: DataConfig):
        self._folder, self._config = as_path(folder), config
        self._paths = find_images(self._folder, field=FIELD).paths
        if config.channels == 1 and _has_colours(self._decode(0, channels=3)):
            logger.warning("the colours of %s are scored as grey: config.data.channels = 1", folder)

    def __len__(self) -> int:
        return len(self._paths)

    def facts(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for path in self._paths:
            name = os.fsencode(path.relative_to(self._folder))
            digest.update(b"%s %s\n" % (name, sha256_of_image(path, field=FIELD).encode()))
        return {"folder": readable(self._folder.resolve().name), "sha256": digest.hexdigest()}

    @functools.cached_property
    def _shape(self) -> tuple[int, ...]:
        return self._decode(0, channels=self._config.channels).shape

    def _decode(self, row: int, *, channels: int) -> UInt8[np.ndarray, "h w c"]:
        path = self._paths[row]
        data = read_file(path, field=FIELD)
        try:
            image = decode_image(data, channels=channels, max_pixels=self._config.max_pixels)
        except Exception as error:  # Pillow's decoders raise anything at all for damaged bytes
            raise UserError(f"{FIELD}: {readable(path)} cannot be read: {error}") from error
        return np.asarray(image).reshape(image.height, image.width, channels)

    def read(self, rows: Rows) -> ImageArray:
        images = _in_threads(functools.partial(self._decode, channels=self._config.channels), rows)
        for row, image in zip(rows, images):
            if image.shape != self._shape:
                ours, first = readable(self._paths[row]), readable(self._paths[0])
                raise UserError(
                    f"{FIELD}: {ours} is {image.shape[1]} x {image.shape[0]}, and {first} is "
                    f"{self._shape[1]} x {self._shape[0]}: bring all images to one size first"
                )
        return np.stack(images)


def _has_colours(image: UInt8[np.ndarray, "h w 3"]) -> bool:
    return bool((image != image[..., :1]).any())


class SourceImages(ImageSet):
    """The images of a split of the config's data, in its order, cropped to `data.image_size`.

    Their labels are read with them, by `examples`.

    Raises:
        UserError: the data is missing or does not fit the config.
    """

    def __init__(self, config: Config, split: str):
        self._source = open_images(of_one_size(config), split)
        self._faults = Faults(config.data.on_error, num_records=len(self._source))
        self._facts = {
            "source": self._source.facts["source"],
            "fingerprint": self._source.facts["fingerprint"]["sha256"],
            "split": split,
            "image_size": config.data.image_size,
            "crop": describe_crop(config.data.pad),
        }

    def __len__(self) -> int:
        return len(self._source)

    def facts(self) -> dict[str, Any]:
        return self._facts

    def read(self, rows: Rows) -> ImageArray:
        return self.examples(rows)[0]

    def examples(self, rows: Rows) -> tuple[ImageArray, Int[np.ndarray, " b"]]:
        """Images and their labels; where the config skips bad records, the next replaces one."""
        examples = _in_threads(lambda row: read_good(self._source, row, False, self._faults), rows)
        images, labels = ([x[name] for x in examples] for name in ("image", "label"))
        return np.stack(images), np.stack(labels)


def open_given(path: str | Path, config: DataConfig) -> ImageSet:
    """Open the images at a path that a user gives: an npz, or a folder of images.

    Args:
        config: how images of a folder are decoded.

    Raises:
        UserError: there is neither.
    """
    path = as_path(path)
    if path.is_dir():
        return FileImages(path, config)
    if path.is_file():
        return NpzImages(path)
    raise UserError(f"{FIELD}: there are no images at {path}: give an npz or a folder")


def _in_threads(function: Callable, rows: Rows) -> list:
    """`function` of each row, in threads: Pillow lets other threads run while it decodes."""
    with ThreadPoolExecutor(min(MAX_WORKERS, os.cpu_count() or 1)) as pool:
        return list(pool.map(function, rows.tolist()))


def batches_of(num: int, size: int) -> Iterator[Rows]:
    """The positions 0 .. num in batches of `size`, the last one perhaps smaller."""
    return (np.arange(i, min(i + size, num)) for i in range(0, num, size))
