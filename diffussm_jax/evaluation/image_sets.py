"""Sets of images to score: an npz in ADM's form, a folder, a data set, or what a model drew."""

import abc
import functools
import hashlib
import os
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from diffussm_jax.config import Config
from diffussm_jax.data.faults import Faults
from diffussm_jax.data.pipeline import MAX_WORKERS, read_good
from diffussm_jax.data.sources import open_images
from diffussm_jax.errors import UserError
from diffussm_jax.files import sha256_of
from diffussm_jax.sampling.images import ImageArray
from diffussm_jax.sampling.job import Samples

Rows = Int[np.ndarray, " b"]

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}


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

    Raises:
        UserError: the file is missing, damaged or of another form.
    """

    def __init__(self, path: str | Path):
        self._path = Path(path)
        try:
            self._archive = zipfile.ZipFile(self._path)
            self._file = self._archive.open("arr_0.npy")
            self._shape, dtype = _read_header(self._file)
            self.labels = _read_labels(self._path, self._shape[0])
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is not an npz of images in `arr_0`: {error}") from error
        if dtype != np.uint8 or len(self._shape) != 4 or self._shape[3] not in (1, 3):
            raise UserError(
                f"{path}: arr_0 must be uint8 [num, height, width, 1 or 3], got {dtype} "
                f"{list(self._shape)}"
            )
        self._start = self._file.tell()

    def __len__(self) -> int:
        return self._shape[0]

    def facts(self) -> dict[str, Any]:
        return {"file": self._path.name, "sha256": sha256_of(self._path)}

    def read(self, rows: Rows) -> ImageArray:
        first, last = int(rows[0]), int(rows[-1])
        size = int(np.prod(self._shape[1:]))
        self._file.seek(self._start + first * size)
        data = self._file.read((last + 1 - first) * size)
        if len(data) < (last + 1 - first) * size:
            raise UserError(f"{self._path} ends before its image {last}")
        images = np.frombuffer(data, np.uint8).reshape(-1, *self._shape[1:])
        return images[rows - first]


def _read_header(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(file)
    if version not in readers:
        raise ValueError(f"its npy version is {version}")
    shape, fortran_order, dtype = readers[version](file)
    if fortran_order:
        raise ValueError("it is in Fortran's order")
    return shape, dtype


def _read_labels(path: Path, num: int) -> np.ndarray | None:
    with np.load(path) as arrays:
        labels = arrays.get("arr_1")
    if labels is None or labels.shape != (num,) or labels.dtype.kind not in "iu":
        return None
    return labels


class FileImages(ImageSet):
    """The images of a folder and its sub-folders, in the order of their names.

    They are read as RGB, or as grey if both they and the run's data are grey. All must have one
    size: resizing takes a filter, and the scores depend on which.

    Args:
        channels: of the run's data.

    Raises:
        UserError: the folder has no images, or one that cannot be read or has another size.
    """

    def __init__(self, folder: str | Path, *, channels: int):
        self._folder = Path(folder)
        files = (path for path in self._folder.rglob("*") if path.is_file())
        self._paths = sorted(x for x in files if x.suffix.lower() in SUFFIXES)
        if not self._paths:
            raise UserError(f"{folder} has no images ({', '.join(sorted(SUFFIXES))})")
        self._mode: str | None = None
        self._mode = "L" if channels == 1 and self._decode(0).ndim == 2 else "RGB"

    def __len__(self) -> int:
        return len(self._paths)

    def facts(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for path in self._paths:
            name = path.relative_to(self._folder).as_posix()
            digest.update(f"{name} {sha256_of(path)}\n".encode())
        return {"folder": self._folder.resolve().name, "sha256": digest.hexdigest()}

    @functools.cached_property
    def _size(self) -> tuple[int, ...]:
        return self._decode(0).shape

    def _decode(self, row: int) -> UInt8[np.ndarray, "..."]:
        """One image: [h w 3], or [h w] where it is grey."""
        try:
            with Image.open(self._paths[row]) as image:
                return np.asarray(image.convert(self._mode))
        except (OSError, ValueError) as error:
            raise UserError(f"{self._paths[row]} cannot be read: {error}") from error

    def read(self, rows: Rows) -> ImageArray:
        images = _in_threads(self._decode, rows)
        for row, image in zip(rows, images):
            if image.shape != self._size:
                raise UserError(
                    f"{self._paths[row]} is {image.shape[1]} x {image.shape[0]}, and "
                    f"{self._paths[0]} is {self._size[1]} x {self._size[0]}: bring all images to "
                    "one size first"
                )
        stacked = np.stack(images)
        return stacked[..., None] if self._mode == "L" else stacked


class SourceImages(ImageSet):
    """The images of a split of the config's data, in its order, cropped as for training.

    Their labels are read with them, by `examples`.

    Raises:
        UserError: the data is missing or does not fit the config.
    """

    def __init__(self, config: Config, split: str):
        self._source = open_images(config, split)
        self._faults = Faults(config.data.on_error, num_records=len(self._source))
        self._facts = {
            "source": self._source.facts["source"],
            "fingerprint": self._source.facts["fingerprint"]["sha256"],
            "split": split,
            "image_size": config.data.image_size,
            "crop": "ADM: box halving, bicubic, centre",
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


def open_given(path: str | Path, *, channels: int) -> ImageSet:
    """Open the images at a path that a user gives: an npz, or a folder of images.

    Args:
        channels: of the run's data, as for `FileImages`.

    Raises:
        UserError: there is neither.
    """
    path = Path(os.path.expanduser(path))
    if path.is_dir():
        return FileImages(path, channels=channels)
    if path.is_file():
        return NpzImages(path)
    raise UserError(f"there are no images at {path}: give an npz or a folder")


def _in_threads(function: Callable, rows: Rows) -> list:
    """`function` of each row, in threads: Pillow lets other threads run while it decodes."""
    with ThreadPoolExecutor(min(MAX_WORKERS, os.cpu_count() or 1)) as pool:
        return list(pool.map(function, rows.tolist()))


def batches_of(num: int, size: int) -> Iterator[Rows]:
    """The positions 0 .. num in batches of `size`, the last one perhaps smaller."""
    return (np.arange(i, min(i + size, num)) for i in range(0, num, size))
