"""Files at gs:// copied into the cache by threads, while their records are read."""

import hashlib
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from diffussm_jax.data.file_cache import FileCache, FullError
from diffussm_jax.errors import StorageError
from diffussm_jax.files.ranges import read_range

logger = logging.getLogger(__name__)

NUM_THREADS = 4  # files that are fetched at a time
PIECE = 8 * 2**20  # bytes of a file that are held in memory
BUSY_SECONDS = 1.0  # until one asks again for a file that another process is fetching
GB = 10**9


class RemoteFile(NamedTuple):
    """A file at gs://.

    Attributes:
        key: of its content; files with one key are the same.
        records: those that are read.
        sha256: of its bytes, where that is known.
    """

    name: str
    num_bytes: int
    key: str
    records: range
    sha256: str | None = None


class DamagedError(Exception):
    """An object does not have the checksum that it should have."""


class _StoppedError(Exception):
    """Nobody reads the records any longer."""


class Fetching:
    """Threads that fetch files, in their order, until the cache is full or has all of them.

    Args:
        found: is called with the number and the path of each file that is in the cache.
    """

    def __init__(
        self, files: Sequence[RemoteFile], cache: FileCache, found: Callable[[int, Path], None]
    ):
        self._files, self._cache, self._found = files, cache, found
        self._stopped, self._missing = threading.Event(), queue.SimpleQueue[int]()
        self._is_full = False
        self._lock, self._num_found, self._num_working = threading.Lock(), 0, NUM_THREADS
        for number in range(len(files)):
            if not self._find(number):
                self._missing.put(number)
        if not self._missing.empty():
            num_bytes = sum(x.num_bytes for x in files)
            logger.info(
                "fetching %s (%.3g GB) while it is read; %d of %d files are in the cache",
                *(self._folder, num_bytes / GB, self._num_found, len(files)),
            )
            for _ in range(NUM_THREADS):
                threading.Thread(target=self._work, daemon=True).start()

    def stop(self) -> None:
        """End the threads soon; the files that they are at are left out."""
        self._stopped.set()

    @property
    def _folder(self) -> str:
        return self._files[0].name.rpartition("/")[0]

    def _find(self, number: int) -> bool:
        path = self._cache.find(self._files[number].key)
        if path is not None:
            self._report(number, path)
        return path is not None

    def _report(self, number: int, path: Path) -> None:
        self._found(number, path)
        with self._lock:
            self._num_found += 1

    def _work(self) -> None:
        try:
            while not self._is_full:
                self._fetch(self._missing.get_nowait())
        except (queue.Empty, _StoppedError):
            pass
        except FullError:
            self._is_full = True
        except (OSError, StorageError) as error:
            self._is_full = True
            logger.warning("no more files are fetched into the cache: %s", error)
        with self._lock:
            self._num_working -= 1
            if not self._num_working:
                self._log_end()

    def _fetch(self, number: int) -> None:
        file = self._files[number]
        if self._stopped.is_set():
            raise _StoppedError
        try:
            path = self._cache.fetch(file.key, file.num_bytes, lambda to: self._copy(file, to))
        except DamagedError as error:  # its records have checksums too: the bad ones are named
            logger.warning("%s; its records are read one by one", error)
            return
        if path is None:
            self._stopped.wait(BUSY_SECONDS)
            self._missing.put(number)
        else:
            self._report(number, path)

    def _copy(self, file: RemoteFile, to: IO[bytes]) -> None:
        copy(file, to, is_stopped=self._stopped.is_set)

    def _log_end(self) -> None:
        num = len(self._files)
        if self._num_found == num:
            logger.info("all %d files of %s are in the cache", num, self._folder)
        else:
            logger.info(
                "%d of %d files of %s are in the cache; the records of the others come from the "
                "bucket one by one",
                *(self._num_found, num, self._folder),
            )


def copy(file: RemoteFile, to: IO[bytes], *, is_stopped: Callable[[], bool] = bool) -> None:
    """Write the content of a file at gs:// to a local one.

    Raises:
        DamagedError: it does not have its checksum.
        FileNotFoundError, StorageError: the object cannot be read.
        OSError: the local file cannot be written.
    """
    digest = hashlib.sha256()
    for start in range(0, file.num_bytes, PIECE):
        if is_stopped():
            raise _StoppedError
        data = read_range(file.name, start, min(start + PIECE, file.num_bytes))
        digest.update(data)
        to.write(data)
    to.flush()
    if file.sha256 not in (None, digest.hexdigest()):
        raise DamagedError(f"{file.name} is damaged: its checksum is another")
