"""Checksums of a checkpoint's files, noted when it was written and compared before it is read."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from etils import epath

MANIFEST_FILE = "manifest.json"
THREADS = 8  # hashlib works without Python's lock
PIECE = 2**22  # bytes read at a time


def write_manifest(folder: epath.Path) -> None:
    """Note name, size and SHA-256 of every file; the manifest's appearance completes the checkpoint."""
    names = sorted(_names(folder))
    with ThreadPoolExecutor(THREADS) as pool:
        sums = list(pool.map(lambda name: _checksum(folder / name), names))
    files = dict(zip(names, sums))
    temporary = folder / f".{MANIFEST_FILE}"
    temporary.write_text(json.dumps({"files": files}, indent=1) + "\n")
    temporary.replace(folder / MANIFEST_FILE)


def is_complete(folder: epath.Path) -> bool:
    """Whether a checkpoint was written to its end, by its look."""
    return (folder / MANIFEST_FILE).exists()


def find_damage(folder: epath.Path, *, part: int = 0, num_parts: int = 1) -> str | None:
    """What is wrong with a checkpoint, in a phrase; None where every file is as it was written.

    Args:
        part: which share of the files to look at, of `num_parts`.
    """
    try:
        text = (folder / MANIFEST_FILE).read_text()
        files = {str(name): tuple(x) for name, x in json.loads(text)["files"].items()}
    except FileNotFoundError:
        return f"{MANIFEST_FILE} is missing: its save did not come to an end"
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return f"{MANIFEST_FILE} is damaged"
    mine = sorted(files)[part::num_parts]
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda name: _compare(folder / name, files[name]), mine)
        return next((f"{name} {x}" for name, x in zip(mine, found) if x), None)


def _compare(path: epath.Path, noted: tuple) -> str | None:
    try:
        size, checksum = _checksum(path)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    if (size, *noted[1:]) != noted:
        return f"has {size} bytes instead of {noted[0]}"
    return None if (size, checksum) == noted else "is not what was written"


def _checksum(path: epath.Path) -> tuple[int, str]:
    size, checksum = 0, hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            size += len(piece)
            checksum.update(piece)
    return size, checksum.hexdigest()


def _names(folder: epath.Path, prefix: str = "") -> Iterator[str]:
    for path in folder.iterdir():
        name = prefix + path.name
        if path.is_dir():
            yield from _names(path, f"{name}/")
        elif not path.name.startswith("."):
            yield name
