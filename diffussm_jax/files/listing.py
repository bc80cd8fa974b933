"""The files of a folder with their sizes: of a bucket by one request for a thousand objects."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from diffussm_jax.files.bucket_paths import file_system
from diffussm_jax.files.paths import is_in_bucket


class Entry(NamedTuple):
    """What a listing says of a file.

    Attributes:
        version: another content has another one: of a bucket a checksum, else the time of change.
    """

    num_bytes: int
    version: str


def list_files(folder: Path) -> dict[str, Entry]:
    """The files in a folder by name, without those of its sub-folders; none if it is missing.

    Raises:
        OSError: it cannot be listed.
    """
    try:
        if is_in_bucket(folder):
            found = file_system().ls(str(folder), detail=True)
            objects = (x for x in found if x["type"] == "file")
            return {x["name"].rpartition("/")[2]: entry_of(x) for x in objects}
        with os.scandir(folder) as entries:
            stats = {x.name: x.stat() for x in entries if x.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {name: Entry(x.st_size, str(x.st_mtime_ns)) for name, x in stats.items()}


def entry_of(info: dict[str, Any]) -> Entry:
    """The entry of an object, given what the bucket says of it."""
    return Entry(int(info["size"]), info.get("crc32c") or info["generation"])
