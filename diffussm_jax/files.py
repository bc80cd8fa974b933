"""Files on disk: replaced as a unit, compared by checksums, read so that damage is named.

JSON is read by `config.parsing.read_as`.
"""

import contextlib
import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from diffussm_jax.errors import UserError

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


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` on success.

    A kill leaves either the old file or the new one.
    """
    temporary = path.with_name(f".{path.name}")
    yield temporary
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Replace a text file as a unit."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file as a unit."""
    write_text(path, json.dumps(value, indent=1) + "\n")


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
        return safetensors.numpy.load_file(path)
    # An AttributeError: an element type that NumPy does not have.
    except (OSError, ValueError, AttributeError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
