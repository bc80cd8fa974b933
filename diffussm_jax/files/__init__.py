"""Files on disk or in a bucket: replaced as a unit, compared, read so that damage is named.

JSON is read by `config.parsing.read_as`.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import safetensors.numpy

from diffussm_jax.errors import UserError
from diffussm_jax.files.bucket_paths import BucketPath
from diffussm_jax.files.paths import is_in_bucket

# What NumPy and zipfile raise for a file that is no npz, or a damaged one.
NPZ_ERRORS = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)

# What desktops, file servers and notebooks leave in folders, in lower case.
_LITTER = frozenset(
    {
        "$recycle.bin",
        "#recycle",
        ".appledouble",
        ".directory",
        ".ds_store",
        ".fseventsd",
        ".ipynb_checkpoints",
        ".localized",
        ".picasa.ini",
        ".spotlight-v100",
        ".temporaryitems",
        ".thumbnails",
        ".trashes",
        "@eadir",
        "__macosx",
        "desktop.ini",
        "ehthumbs.db",
        "icon\r",
        "lost+found",
        "picasa.ini",
        "system volume information",
        "thumbs.db",
    }
)
_LITTER_PREFIXES = ("._", ".trash-", ".nfs", ".fuse_hidden")


def is_desktop_litter(name: str) -> bool:
    """Whether a file or folder of this name was left by a desktop system, and is nobody's."""
    name = name.lower()
    return name in _LITTER or name.startswith(_LITTER_PREFIXES)


def require_only(folder: Path, is_ours: Callable[[str], bool], *, named: str) -> None:
    """Raise UserError, before anything is written, if a folder holds anybody else's files.

    Args:
        folder: may be missing.
        is_ours: whether a file or folder of this name is one that the caller may replace.
        named: what the error calls the folder, as `config.export.folder: weights`.
    """
    try:
        names = [path.name for path in folder.iterdir()] if folder.exists() else []
    except NotADirectoryError as error:
        raise UserError(f"{named} is not a folder") from error
    except OSError as error:
        raise UserError(f"{named} cannot be read: {error.strerror or error}") from error
    others = [name for name in names if not (is_desktop_litter(name) or is_ours(name))]
    if others:
        raise UserError(
            f"{named} holds {min(others)!r}, which does not belong there: use another folder, or "
            "move it away"
        )


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path on a disk that replaces `path` on success.

    A kill leaves either the old file or the new one.
    """
    if isinstance(path, BucketPath):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder, path.name)
            yield temporary
            path.replace_by(temporary)
        return
    temporary = path.with_name(f".{path.name}")
    yield temporary
    temporary.replace(path)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder whose files replace those of `path` on success."""
    with replacing(path) as temporary:
        shutil.rmtree(temporary, ignore_errors=True)  # of a job that was killed
        temporary.mkdir(parents=True)
        yield temporary
        if not is_in_bucket(path) and path.exists():
            shutil.rmtree(path)


@contextlib.contextmanager
def on_disk(path: Path) -> Iterator[Path]:
    """Yield the path of a file on a disk, for libraries that read no other: perhaps of a copy."""
    if not is_in_bucket(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        with path.open("rb") as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target, 2**24)
        yield copy


def seekable(path: Path) -> Any:
    """What NumPy and zipfile read of a path: itself on a disk, else the object, opened."""
    return path.open("rb") if is_in_bucket(path) else path


def array_header(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Read the shape and type of an .npy file up to its data.

    Raises:
        ValueError: it is of another version, or in Fortran's order.
    """
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


def array_shape(path: Path) -> tuple[int, ...]:
    """The shape of the array in an .npy file.

    Raises:
        ValueError: it is no such file, or a torn one.
    """
    options: dict[str, Any] = {"cache_type": "none"} if is_in_bucket(path) else {}
    with path.open("rb", **options) as file:
        shape, dtype = array_header(file)
        size = math.prod(shape) * dtype.itemsize
        if file.tell() + size != file.seek(0, os.SEEK_END):
            raise ValueError(f"{path} is torn")
    return shape


def write_text(path: Path, text: str) -> None:
    """Replace a text file as a unit."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file as a unit."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Replace a safetensors file as a unit."""
    with replacing(path) as temporary:
        safetensors.numpy.save_file(
            {name: np.ascontiguousarray(x) for name, x in tensors.items()}, temporary
        )


def one_writer(path: Path) -> contextlib.AbstractContextManager:
    """A context that one process at a time is in: those that would make the same file wait.

    In a bucket, which has no such locks, they make it each, and the last one's stays.
    """
    if is_in_bucket(path):
        return contextlib.nullcontext()
    path.parent.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(path.with_name(f".{path.name}.lock"))


@contextlib.contextmanager
def writing_to(path: Path, *, field: str | None = None) -> Iterator[None]:
    """Turn the errors of writing to `path` into UserErrors that name the field that chose it.

    They are OSErrors, safetensors' own, and the RuntimeErrors of array_record. JAX raises
    RuntimeErrors too: what computes does not belong into the block.
    """
    try:
        yield
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        name = f"{field}: {path}" if field else f"{path}"
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{name} cannot be written: {reason}") from error


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a safetensors file, by name.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        with on_disk(path) as file:
            return safetensors.numpy.load_file(file)
    # An AttributeError: an element type that NumPy does not have.
    except (OSError, ValueError, AttributeError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
