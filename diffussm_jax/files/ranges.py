"""Ranges of the bytes of objects at gs://, by TensorStore, with hundreds of requests in flight.

TensorStore keeps its connections and repeats a request that the bucket refuses as busy or whose
connection ends; here each wait that is longer than usual is a line of the log.
"""

import errno
import functools
import logging
import re
import threading
import time

import tensorstore

from diffussm_jax.errors import StorageError

logger = logging.getLogger(__name__)

MAX_IN_FLIGHT = 64  # requests of a process
# Waits of 1, 2, 4 ... 16 seconds between the tries: 63 seconds in all.
RETRIES = {"max_retries": 7, "initial_delay": "1s", "max_delay": "16s"}
PATIENCE = 2.0  # seconds without an answer until the log says so
LIMIT = 180.0  # seconds until a request counts as failed, whatever TensorStore still tries

_last_line = 0.0
_lock = threading.Lock()


def read_object(name: str) -> bytes:
    """Read a whole object; arguments and errors are those of `read_range`."""
    return read_range(name, None, None)


def read_range(name: str, start: int | None, stop: int | None) -> bytes:
    """Read the bytes [start, stop) of an object.

    Args:
        name: gs://BUCKET/KEY.

    Raises:
        FileNotFoundError: there is no such object.
        StorageError: the bucket refuses it, or does not answer, whatever was tried.
    """
    bucket, _, key = name.removeprefix("gs://").partition("/")
    begun = time.monotonic()
    try:
        future = _open(bucket).read(key, byte_range=slice(start, stop))
        while True:
            try:
                result = future.result(timeout=PATIENCE)
                break
            except TimeoutError:
                _log_wait(name, time.monotonic() - begun)
    except ValueError as error:  # all that TensorStore raises
        raise _our_error(error, name) from error
    if result.state != "value":
        raise FileNotFoundError(errno.ENOENT, "No such object", name)
    return result.value


@functools.cache
def _open(bucket: str) -> tensorstore.KvStore:
    context = {"gcs_request_retries": RETRIES, "gcs_request_concurrency": {"limit": MAX_IN_FLIGHT}}
    return tensorstore.KvStore.open(
        f"gs://{bucket}/", context=tensorstore.Context(context)
    ).result()


def _log_wait(name: str, seconds: float) -> None:
    """Log that an object keeps one waiting: one line for all that wait at the time."""
    global _last_line
    if seconds > LIMIT:
        raise StorageError(name, f"the bucket does not answer in {LIMIT:.0f} s", may_pass=True)
    with _lock:
        if time.monotonic() < _last_line + PATIENCE / 2:
            return
        _last_line = time.monotonic()
    logger.warning("%s: no answer for %.0f s; trying on", name, seconds)


def _our_error(error: ValueError, name: str) -> Exception:
    from diffussm_jax.files.gcs import error_of  # its libraries take a second

    text = str(error).splitlines()[0]
    status = re.search(r"http_response_code='(\d+)'", text)
    return error_of(name, int(status[1]) if status else None, text)
