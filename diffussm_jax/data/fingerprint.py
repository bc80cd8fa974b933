"""What tells the images of a source from any others, on any machine and at any later time.

A cache of latents and a run keep the fingerprint of the images that they were made from.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffussm_jax.data.image_files import ImageFiles
from diffussm_jax.errors import CommandEnd
from diffussm_jax.files.listing import Entry

NUM_PROBES = 64
PROBE_BYTES = 2**20  # of a file
PARQUET_PROBE_BYTES = 2**16
_PARQUET_END = 8  # bytes behind a footer: its length, and a mark

# The SHA-256 of each file of a folder, by its name in the folder, in the order of the records.
Checksums = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """Which images a source has, and in which order.

    Attributes:
        data_set: name and version; a folder's name has a hash of its files' names, sizes and times.
        num_images: in the folder, or in the split of any other data set.
        sha256: of a folder, over the name and the content of every file. Of parquet, over the
            footers, which have the size of every column of a row group, and a few parts of files.
            Of any other data set, whose version vouches for its content, over the bytes and labels
            of a few records.
    """

    data_set: str
    num_images: int
    sha256: str

    def has_images_of(self, other: "Fingerprint") -> bool:
        """Whether the images and their order are the same; where they lie does not matter."""
        return (self.num_images, self.sha256) == (other.num_images, other.sha256)

    def difference_from(self, before: "Fingerprint") -> str | None:
        """Say how the images differ from those of an earlier fingerprint; None if they do not."""
        if self.has_images_of(before):
            return None
        now, then = (f"{x.num_images} images ({x.data_set})" for x in (self, before))
        if now == then:
            return f"{now} as then, but others or in another order"
        return f"{now} now and {then} then"


def of_records(data_set: str, records: Sequence[dict[str, Any]]) -> Fingerprint:
    """Fingerprint a split of a prepared data set by records that are spread evenly over it."""
    digest = hashlib.sha256()
    for index in probes(len(records)):
        try:
            record = records[index]
            digest.update(b"%d " % int(record.get("label", -1)) + record["image"])
        except CommandEnd:  # of a bucket
            raise
        # A bad record is named when it is used; its reader raises anything at all.
        except Exception:  # noqa: BLE001
            digest.update(b"unreadable")
    return Fingerprint(data_set, len(records), digest.hexdigest())


def of_parquet(
    data_set: str, files: Sequence[Path], *, num_images: int, read: object
) -> Fingerprint:
    """Fingerprint a split in parquet: its footers, and parts that are spread evenly over it.

    Args:
        read: what is read of the files, as JSON: rows and columns.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256(json.dumps(read).encode())
    ends = np.cumsum([path.stat().st_size for path in files])
    places = np.asarray(probes(int(ends[-1])))
    for number, path in enumerate(files):
        start = int(ends[number - 1]) if number else 0
        with path.open("rb") as file:
            file.seek(-_PARQUET_END, os.SEEK_END)
            length = int.from_bytes(file.read(4), "little")
            file.seek(-_PARQUET_END - length, os.SEEK_END)
            digest.update(file.read(length))
            for place in places[(start <= places) & (places < ends[number])]:
                file.seek(int(place) - start)
                digest.update(file.read(PARQUET_PROBE_BYTES))
    return Fingerprint(data_set, num_images, digest.hexdigest())


def of_folder(data_set: str, checksums: Checksums) -> Fingerprint:
    """Fingerprint a folder of images."""
    digest = hashlib.sha256(json.dumps(list(checksums.items())).encode())
    return Fingerprint(data_set, len(checksums), digest.hexdigest())


def key_of_folder(folder: Path, found: ImageFiles, classes: Sequence[str]) -> str:
    """Hash the classes, the names, sizes and modification times of all files, and a few contents.

    The contents tell folders apart whose files have one size and one time, as archives leave them.
    Of files in a bucket the listing has checksums, which stand for the times and the contents.
    The classes may have one without images, which moves the labels of those behind it.
    """
    digest = hashlib.sha256(json.dumps(list(classes)).encode())
    for file, (num_bytes, version) in zip(found.paths, found.entries or _entries(found.paths)):
        line = f"{file.relative_to(folder)}\0{num_bytes}\0{version}\n"
        digest.update(line.encode(errors="surrogateescape"))
    for index in [] if found.entries else probes(len(found.paths)):
        # A file that cannot be read is named when it is used.
        with contextlib.suppress(OSError), found.paths[index].open("rb") as opened:
            digest.update(opened.read(PROBE_BYTES))
    return digest.hexdigest()[:12]


def _entries(files: Sequence[Path]) -> Iterator[Entry]:
    for stat in map(Path.stat, files):
        yield Entry(stat.st_size, str(stat.st_mtime_ns))


def probes(num: int) -> list[int]:
    """At most `NUM_PROBES` of the indices 0 .. num, spread evenly."""
    return np.unique(np.linspace(0, num - 1, NUM_PROBES, dtype=int)).tolist()


def describe_changes(before: Checksums, now: Checksums) -> str:
    """Say how many files were added, removed and changed, and name one of each."""
    both = before.keys() & now.keys()
    groups = {
        "added": now.keys() - before.keys(),
        "removed": before.keys() - now.keys(),
        "changed": {name for name in both if before[name] != now[name]},
    }
    parts = [f"{len(names)} {what} ({min(names)})" for what, names in groups.items() if names]
    return ", ".join(parts) or "in another order"
