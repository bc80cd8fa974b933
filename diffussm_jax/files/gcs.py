"""The file system at gs://: gcsfs, with errors that name the object.

gcsfs repeats a request six times, after 1, 2, 4, 8 and 16 seconds, where the bucket is busy or out
of reach. Each repetition is a line of the log here.
"""

import asyncio
import contextvars
import errno
import json
import logging
import os
import re
import warnings
from typing import Any
from urllib.parse import unquote

import aiohttp
import google.auth.exceptions
import requests

os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # spares the import of gRPC
import gcsfs.core
from gcsfs.retry import HttpError

from diffussm_jax.errors import StorageError

logger = logging.getLogger(__name__)

_ERRORS = (
    HttpError,
    OSError,
    ValueError,  # gcsfs's, where the bucket says that something is invalid
    aiohttp.ClientError,
    asyncio.TimeoutError,
    google.auth.exceptions.GoogleAuthError,
    requests.RequestException,
)
REFUSALS = {
    401: "the bucket does not take the credentials (401): have they expired?",
    403: "the bucket denies access (403): grant the account the permission",
}
_object: contextvars.ContextVar[str] = contextvars.ContextVar("object", default="gs://")


class BucketFileSystem(gcsfs.core.GCSFileSystem):
    """gcsfs without its cache of listings: other processes write into the same bucket."""

    default_block_size = 2**24  # bytes of a request in a large object

    def __init__(self, *args: Any, **options: Any):
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # of a project, which only new buckets need
            super().__init__(*args, **options | {"use_listings_cache": False})

    async def _call(self, method: str, path: str, *args: str, **options: Any) -> Any:
        """Make a request, repeated where that may help.

        Raises:
            FileNotFoundError, FileExistsError: the object is not there, or is there already.
            StorageError: whatever else the library raises.
        """
        name = _name_of(path, args, options)
        token = _object.set(name)
        try:
            return await super()._call(method, path, *args, **options)
        except _ERRORS as error:
            text = (str(error).strip(", ") or type(error).__name__).splitlines()[0]
            raise error_of(name, _status_of(error), text) from error
        finally:
            _object.reset(token)

    async def _info(self, path: str, **options: Any) -> dict[str, Any]:
        """What is known of an object or a folder; of a bucket nothing is asked.

        Who may read and write its objects need not be allowed to look at the bucket itself.
        """
        name = self._strip_protocol(path).rstrip("/")
        if "/" not in name:
            return {"name": name, "size": 0, "type": "directory"}
        return await super()._info(path, **options)


def error_of(name: str, status: int | None, text: str) -> Exception:
    """The error of an object whose request ended in a status, or in what the text says."""
    if status == 404:
        return FileNotFoundError(errno.ENOENT, "No such object", name)
    if status == 412:
        return FileExistsError(errno.EEXIST, "Another process has written it", name)
    if status in REFUSALS:
        return StorageError(name, REFUSALS[status], may_pass=False)
    return StorageError(name, f"the bucket does not answer ({text})", may_pass=True)


def _status_of(error: BaseException) -> int | None:
    if isinstance(error, HttpError):
        return int(error.code) if error.code else None
    if isinstance(error, FileNotFoundError):
        return 404
    if isinstance(error, FileExistsError):
        return 412
    if isinstance(error, OSError) and str(error).startswith("Forbidden"):
        return 403
    return 401 if isinstance(error, google.auth.exceptions.GoogleAuthError) else None


def _name_of(path: str, args: tuple[str, ...], options: dict[str, Any]) -> str:
    """The object, or the folder, that a request is about."""
    path = path.format(*args) if args else unquote(path)
    match = re.search(r"(?:^|/)b/([^/?]+)(?:/o/?([^?]*))?", path)
    bucket, key = (match[1], match[2] or "") if match else ("", "")
    if not key:
        if given := re.search(r"[?&]name=([^&]+)", path):
            key = given[1]
        elif options.get("uploadType") == "multipart":
            named = re.search(rb'"name": ("(?:[^"\\]|\\.)*")', bytes(options["data"][:4096]))
            key = json.loads(named[1]) if named else ""
        else:
            key = options.get("prefix") or ""
    return f"gs://{bucket}/{key}".rstrip("/")


class _RetryLines(logging.Handler):
    """Turns what gcsfs says of a repeated request into a line of our log."""

    def emit(self, record: logging.LogRecord) -> None:
        _, found, reason = record.getMessage().partition("retrying after exception: ")
        if found:
            reason = reason.splitlines()[0] if reason.strip(", ") else "no answer"
            logger.warning("%s: %s; trying again", _object.get(), reason.lstrip(", "))


def log_retries() -> None:
    """Log each repeated request in one line, without gcsfs's tracebacks of what it raises too."""
    library = logging.getLogger("gcsfs")
    library.setLevel(logging.DEBUG)
    library.handlers, library.propagate = [_RetryLines()], False
