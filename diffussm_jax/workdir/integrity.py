"""Checksums of a checkpoint's files, noted when it is written and compared before it is read."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from diffussm_jax.config import parsing
from diffussm_jax.files import write_text
from diffussm_jax.files.paths import as_path

MANIFEST_FILE = "manifest.json"
NUM_THREADS = 8  # hashlib releases Python's lock
CHUNK_BYTES = 2**22  # read at a time


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Size in bytes and SHA-256 of each file of a checkpoint, by its path in the folder."""

    files: dict[str, tuple[int, str]]


def write_manifest(folder: epath.Path) -> None:
    """Note size and SHA-256 of every file; the manifest's appearance completes the checkpoint."""
    names = sorted(_names(folder))
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        sums = list(pool.map(lambda name: _checksum(folder / name), names))
    manifest = Manifest(dict(zip(names, sums)))
    text = json.dumps(dataclasses.asdict(manifest), indent=1) + "\n"
    write_text(as_path(folder / MANIFEST_FILE), text)


def is_complete(folder: epath.Path) -> bool:
    """Whether a checkpoint was written to its end; its files are not read."""
    return (folder / MANIFEST_FILE).exists()


def find_damage(folder: epath.Path, *, part: int = 0, num_parts: int = 1) -> str | None:
    """Compare the files of a checkpoint with its manifest; give what is wrong in a phrase, or None.

    Args:
        part: which share of the files to look at, of `num_parts`.
    """
    try:
        text = (folder / MANIFEST_FILE).read_text(encoding="utf-8")
        files = parsing.from_json(Manifest, text).files
    except FileNotFoundError:
        return f"{MANIFEST_FILE} is missing: its save did not come to an end"
    except (OSError, ValueError):  # a ValueError: what it holds is no manifest
        return f"{MANIFEST_FILE} is damaged"
    names = sorted(files)[part::num_parts]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        damages = pool.map(lambda name: _compare(folder / name, *files[name]), names)
        return next((f"{name} {damage}" for name, damage in zip(names, damages) if damage), None)


def _compare(path: epath.Path, noted_size: int, noted_checksum: str) -> str | None:
    try:
        size, checksum = _checksum(path)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    if size != noted_size:
        return f"has {size} bytes instead of {noted_size}"
    return None if checksum == noted_checksum else "is not what was written"


def _checksum(path: epath.Path) -> tuple[int, str]:
    size, checksum = 0, hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            size += len(chunk)
            checksum.update(chunk)
    return size, checksum.hexdigest()


def _names(folder: epath.Path, prefix: str = "") -> Iterator[str]:
    """The files of a folder and its sub-folders, hidden ones left out."""
    for path in folder.iterdir():
        name = prefix + path.name
        if path.is_dir():
            yield from _names(path, f"{name}/")
        elif not path.name.startswith("."):
            yield name
