"""One job at a time in a folder of outputs: a lock that its holder's death frees.

.lock   the host and the process that hold the folder, and since when

On a disk the lock is the kernel's, on that file. In a bucket, which has no such locks, the file is
a lease that its holder renews. Decision 17 says what each promises.
"""

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import json
import logging
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NoReturn

from diffussm_jax.config.parsing import ConfigError, from_json
from diffussm_jax.errors import StorageError, UserError
from diffussm_jax.files.paths import is_in_bucket
from diffussm_jax.parallel.distributed import follow_first, is_first

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
INTRODUCTION_SECONDS = 1.0  # in which a holder has written who it is
RENEWAL_SECONDS = 15.0
EXPIRY_SECONDS = 60.0  # without renewal, after which a lease is free
SETTLING_SECONDS = 3.0  # from a claim until it is read back
# A lease this old by the clock is free at once: clocks of two hosts differ by less.
FORGOTTEN_SECONDS = 600.0
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


@dataclasses.dataclass(frozen=True)
class _Owner:
    """What a lock file says of its holder; `renewed` is in seconds since 1970."""

    host: str
    pid: int
    since: str
    token: str
    renewed: float

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


def is_lock(name: str) -> bool:
    """Whether a file of this name is a folder's lock, or what a kill left of a lease."""
    return name == LOCK_FILE or name.startswith(f"{LOCK_FILE}.")


@contextlib.contextmanager
def held(folder: Path, *, named: str, file: str = LOCK_FILE) -> Iterator[None]:
    """Hold a folder of outputs, which is created, until the end of the context or of the process.

    Of a job of several processes the first one holds it for all, and the others wait until it does.

    Args:
        named: what an error calls the folder, as `--workdir=runs/digits`.
        file: name of the lock, for outputs in one folder that do not disturb one another.

    Raises:
        UserError: another job holds the folder, or it cannot be written.
    """
    if not is_first():
        follow_first(file)
        yield
        return
    path = folder / file
    with contextlib.ExitStack() as stack:
        with _errors_of_writing(named):
            is_on_disk = not is_in_bucket(folder)
            missing = [x for x in (folder, *folder.parents) if is_on_disk and not x.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            stack.callback(_remove_empty, missing)
            lock = _lock(path, named) if is_on_disk else None
        stack.enter_context(lock or _lease(path, named))
        follow_first(file)
        yield


@contextlib.contextmanager
def _errors_of_writing(named: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError) as error:  # a ValueError: a NUL in the name
        raise UserError(f"{named} cannot be written: {error}") from error


def _lock(path: Path, named: str) -> contextlib.AbstractContextManager | None:
    """Take the kernel's lock; None on a file system that has no locks."""
    deadline = time.monotonic() + INTRODUCTION_SECONDS
    while True:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(path.open("a+", encoding="utf-8"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                text = file.read()
                if text or time.monotonic() > deadline:
                    raise _in_use(named, _parse(text)) from error
                time.sleep(0.01)
                continue
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    return None
                raise
            if not _is_at(file, path):
                continue  # the holder before removed it at its end
            file.truncate(0)
            file.write(_describe(_this_process()))
            file.flush()
            stack.callback(_remove, path)  # while it is still locked
            return stack.pop_all()


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove new folders into which nothing was written, the innermost first."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError, StorageError):  # a disk that has become read-only
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _lease(path: Path, named: str) -> Iterator[None]:
    """Hold a lease: claim it, read it back, and renew it in the background."""
    owner = _this_process()
    with _errors_of_writing(named):
        _wait_until_free(path, named)
        _write(path, owner)
        time.sleep(SETTLING_SECONDS)
        last = _read(path)  # of two that claim it at once, the one that wrote last has it
        if last is None or last.token != owner.token:
            raise _in_use(named, last)
    is_over = threading.Event()
    arguments = path, named, owner, is_over
    renewal = threading.Thread(target=_renew, args=arguments, name="lease", daemon=True)
    renewal.start()
    try:
        yield
    finally:
        is_over.set()
        renewal.join(RENEWAL_SECONDS)
        _remove(path)


def _wait_until_free(path: Path, named: str) -> None:
    """Raise UserError if a lease is renewed while this looks on."""
    first = _read(path)
    if first is None or time.time() - first.renewed > FORGOTTEN_SECONDS:
        return
    logger.info("%s was held by %s: waiting to see whether it still is", named, first)
    deadline = time.monotonic() + EXPIRY_SECONDS
    while time.monotonic() < deadline:
        time.sleep(RENEWAL_SECONDS / 5)
        now = _read(path)
        if now is None:
            return
        if now != first:
            raise _in_use(named, now)


def _renew(path: Path, named: str, owner: _Owner, is_over: threading.Event) -> None:
    """Renew a lease until its end; end the process where another one has taken it."""
    while not is_over.wait(RENEWAL_SECONDS):
        try:
            now = _read(path)
            if now is not None and now.token != owner.token:
                _end(named, now)
            _write(path, dataclasses.replace(owner, renewed=time.time()))
        except Exception as error:  # noqa: BLE001 - a bucket out of reach raises anything
            logger.warning("the lease %s cannot be renewed: %s", path, error)


def _end(named: str, owner: _Owner) -> NoReturn:
    """End the process at once: what it wrote from now on would mix with the other's files."""
    sys.stderr.write(f"error: {named} was taken over by {owner}, and this process ends\n")
    sys.stderr.flush()
    os._exit(1)


def _in_use(named: str, owner: _Owner | None) -> UserError:
    who = owner or "another process"
    return UserError(f"{named} is in use by {who}: wait for it, stop it, or use another folder")


def _this_process() -> _Owner:
    now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return _Owner(socket.gethostname(), os.getpid(), now, secrets.token_hex(8), time.time())


def _describe(owner: _Owner) -> str:
    return json.dumps(dataclasses.asdict(owner)) + "\n"


def _write(path: Path, owner: _Owner) -> None:
    """Replace a lease as a unit, past whoever else is writing it."""
    target = path if is_in_bucket(path) else path.with_name(f"{path.name}.{owner.token}")
    target.write_text(_describe(owner), encoding="utf-8")
    if target != path:
        target.replace(path)


def _read(path: Path) -> _Owner | None:
    """Who holds a lease; None where there is none, or no lease is in the file."""
    try:
        return _parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _parse(text: str) -> _Owner | None:
    try:
        return from_json(_Owner, text)
    except ConfigError:
        return None
