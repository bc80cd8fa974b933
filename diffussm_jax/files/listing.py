"""The files of a folder with their sizes: of a bucket by one request for a thousand objects."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from diffussm_jax.files.bucket_paths import file_system
from diffussm_jax.files.paths import is_in_bucket


class Entry(NamedTuple):
    """What a listing says of a file.

    Attributes:
        version: another content has another one: in a bucket a checksum, else the time of change.
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
            return {name: x for name, x in list_objects(folder).items() if x is not None}
        with os.scandir(folder) as entries:
            stats = {x.name: x.stat() for x in entries if x.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {name: Entry(x.st_size, str(x.st_mtime_ns)) for name, x in stats.items()}


def list_objects(folder: Path) -> dict[str, Entry | None]:
    """What is in a folder of a bucket by name, in this order; of a folder None.

    Raises:
        OSError: it is missing or cannot be listed.
    """
    found = file_system().ls(str(folder), detail=True)
    # The console makes a folder as an object of its name, which is listed as one in it.
    own = str(folder).removeprefix("gs://")
    entries = [x for x in found if x["name"].rstrip("/") != own]
    return {
        x["name"].rpartition("/")[2]: None if x["type"] == "directory" else _entry(x)
        for x in sorted(entries, key=lambda x: x["name"])
    }


def _entry(info: dict[str, Any]) -> Entry:
    return Entry(int(info["size"]), info.get("crc32c") or info.get("generation", ""))
