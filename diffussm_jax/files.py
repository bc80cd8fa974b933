"""Files that are there whole or not at all, and their checksums."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path


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
