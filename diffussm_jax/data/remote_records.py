"""Records of ArrayRecord files at gs://, which become local as far as the cache has room.

Threads fetch whole files into the cache while records are read, and what is not there yet is read
from the bucket record by record. The order of reading is shuffled over all files, so that files
which stay serve more reads than a cache of what was read last (decision 33).
"""

import bisect
import itertools
import logging
import os
import tempfile
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordReader

from diffussm_jax.config import DataConfig
from diffussm_jax.data.fetching import Fetching, RemoteFile, copy
from diffussm_jax.data.file_cache import FileCache
from diffussm_jax.data.record_ranges import READER_OPTIONS
from diffussm_jax.files import writing_to

logger = logging.getLogger(__name__)

PARALLEL_READS = 64  # of a batch from the bucket, at a time
LOADERS = 4  # files that are loaded into memory at a time
GB = 10**9


class RemoteRecords:
    """The records of files at gs://, one after the other.

    Args:
        cache: the files become local there; None reads the bucket alone.
        read_one: reads a record of a file from the bucket, by its number there.
    """

    def __init__(
        self,
        files: Sequence[RemoteFile],
        cache: FileCache | None,
        read_one: Callable[[RemoteFile, int], bytes],
    ):
        self._files, self._read_one = files, read_one
        self._ends = list(itertools.accumulate(len(x.records) for x in files))
        self._local: dict[int, ArrayRecordReader] = {}  # by the file's number
        if cache is not None:
            local = self._local  # the threads do not keep this object
            fetching = Fetching(
                files, cache, lambda number, path: local.update({number: open_reader(path)})
            )
            weakref.finalize(self, fetching.stop)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> bytes:
        number = bisect.bisect_right(self._ends, index)
        if not 0 <= index < len(self):
            raise IndexError(index)
        file = self._files[number]
        position = file.records[index - self._ends[number]]  # from the end of those records
        try:
            if (reader := self._local.get(number)) is not None:
                try:
                    return reader.read([position])[0]
                except RuntimeError as error:  # what is read must not depend on the cache
                    logger.warning("%s: record %d in the cache: %s", file.name, position, error)
            return self._read_one(file, position)
        except RuntimeError as error:
            raise RuntimeError(f"{file.name}: {error}") from error

    def load(self) -> list[bytes]:
        """Read all records, from whole files; at most a few of them are on the disk meanwhile."""
        with ThreadPoolExecutor(LOADERS) as pool:
            return list(itertools.chain.from_iterable(pool.map(_load, self._files)))

    @property
    def num_local(self) -> int:
        """How many of the files are in the cache."""
        return len(self._local)

    @property
    def is_local(self) -> bool:
        """Whether the bucket is needed no longer."""
        return len(self._local) == len(self._files)


def parallel_reads_of(records: object) -> int:
    """How many records are best read at a time: many while some come from a bucket."""
    is_remote = isinstance(records, RemoteRecords) and not records.is_local
    return PARALLEL_READS if is_remote else 1


def open_reader(path: Path | str) -> ArrayRecordReader:
    """Open an ArrayRecord file for reading in any order."""
    return ArrayRecordReader(str(path), options=READER_OPTIONS, file_reader_buffer_size=2**15)


def _load(file: RemoteFile) -> list[bytes]:
    with tempfile.NamedTemporaryFile() as local:
        copy(file, local)
        reader = open_reader(local.name)
        records = reader.read(list(file.records))
        reader.close()
        return records


def open_cache(config: DataConfig) -> FileCache | None:
    """The cache of files from buckets; None where it may hold nothing.

    Raises:
        UserError: its folder cannot be made.
    """
    if not config.cache_gb:
        return None
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(config.cache_dir or f"{root}/diffussm_jax/files")
    with writing_to(folder, field="config.data.cache_dir"):
        folder.mkdir(parents=True, exist_ok=True)
    return FileCache(folder, max_bytes=round(config.cache_gb * GB))
