"""Files that are there whole or not at all, and their checksums."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors.numpy

from diffussm_jax.errors import UserError


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """What is written inside to the path that this gives replaces `path` at the end: a kill leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}")
    yield temporary
    temporary.replace(path)


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file whole."""
    with whole(path) as temporary:
        temporary.write_text(text)


def sha256_of(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file by name.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return safetensors.numpy.load_file(path)
    # An AttributeError: an element type that NumPy has not.
    except (OSError, ValueError, AttributeError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
