"""Whole files of buckets on this machine's disk, together no larger than asked for.

<folder>/
    KEY         a whole, checked file; the time of its last use is its modification time
    .KEY        one that is being fetched, of its full size from the start
    .cache.lock held while room is made, for a moment

Whoever uses or fetches a file holds a lock on it, which ends with the process. What nobody uses
gives way, the least recently used first; so do the remains of a fetch that was killed.
"""

import contextlib
import fcntl
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from diffussm_jax.files import one_writer

Fetch = Callable[[BinaryIO], None]


class FullError(Exception):
    """All that the cache may hold is in use."""


class FileCache:
    """A folder of files by key, of at most `max_bytes`, which processes share.

    The files that an object of this class has found or fetched stay until it is gone.
    """

    def __init__(self, folder: Path, *, max_bytes: int):
        self._folder, self._max_bytes = folder, max_bytes
        self._in_use: dict[str, int] = {}  # open files, with a shared lock on each
        self._lock = threading.Lock()
        weakref.finalize(self, _close, self._in_use)

    def find(self, key: str) -> Path | None:
        """The file of a key, which is in use from now on; None if it is not here."""
        path = self._folder / key
        with self._lock, contextlib.suppress(FileNotFoundError, BlockingIOError):
            if key in self._in_use and _is_at(self._in_use[key], path):
                _touch(self._in_use[key])
                return path
            with _opened(path, os.O_RDONLY, fcntl.LOCK_SH) as file:
                if _is_at(file, path):  # it might have given way just before it was locked
                    self._keep(key, os.dup(file))
                    return path
        return None

    def fetch(self, key: str, num_bytes: int, write: Fetch) -> Path | None:
        """Fetch a file, unless another thread or process is at it: then None, and one asks again.

        Args:
            write: writes the file's content, and raises where that is not as it should be.

        Raises:
            FullError: there is no room that others do not use.
            OSError: as the disk does, and whatever `write` raises; no file is left then.
        """
        path, partial = self._folder / key, self._folder / f".{key}"
        with contextlib.ExitStack() as stack:
            with one_writer(self._folder / "cache"):
                if path.exists():
                    return self.find(key)
                try:
                    flags = os.O_RDWR | os.O_CREAT
                    file = stack.enter_context(_opened(partial, flags, fcntl.LOCK_EX))
                except BlockingIOError:
                    return None
                stack.callback(partial.unlink, missing_ok=True)
                self._make_room(num_bytes, beside=partial.name)
                os.ftruncate(file, num_bytes)
            with os.fdopen(os.dup(file), "wb") as opened:
                write(opened)
            with one_writer(self._folder / "cache"):
                try:
                    partial.rename(path)
                except FileNotFoundError:  # somebody has removed the cache
                    return None
                fcntl.flock(file, fcntl.LOCK_SH)
                with self._lock:
                    self._keep(key, os.dup(file))
        return path

    def _keep(self, key: str, file: int) -> None:
        _touch(file)
        if key in self._in_use:
            os.close(self._in_use[key])
        self._in_use[key] = file

    def _make_room(self, num_bytes: int, *, beside: str) -> None:
        """Remove files until `num_bytes` fit, or raise FullError and remove none.

        Args:
            beside: a file that does not count.
        """
        stats = {}
        for entry in os.scandir(self._folder):
            if entry.name not in (beside, ".cache.lock"):
                with contextlib.suppress(FileNotFoundError):
                    stats[entry.name] = entry.stat()
        excess = sum(x.st_size for x in stats.values()) + num_bytes - self._max_bytes
        # Remains of a fetch first: their names begin with a dot.
        by_age = sorted(stats, key=lambda name: (name[0] != ".", stats[name].st_mtime_ns))
        with contextlib.ExitStack() as stack:
            unused = []
            for name in by_age:
                if excess <= 0:
                    break
                path = self._folder / name
                with contextlib.suppress(BlockingIOError, FileNotFoundError):
                    stack.enter_context(_opened(path, os.O_RDONLY, fcntl.LOCK_EX))
                    unused.append(path)
                    excess -= stats[name].st_size
            if excess > 0:
                raise FullError
            for path in unused:
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def _opened(path: Path, flags: int, lock: int) -> Iterator[int]:
    """Open and lock a file; raise BlockingIOError if another has it."""
    file = os.open(path, flags, 0o644)
    try:
        fcntl.flock(file, lock | fcntl.LOCK_NB)
        yield file
    finally:
        os.close(file)


def _touch(file: int) -> None:
    now = time.time_ns()  # the system's own clock for files is coarser
    os.utime(file, ns=(now, now))


def _close(files: dict[str, int]) -> None:
    for file in files.values():
        os.close(file)


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file is the one at a path now."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
