"""The file system at gs://: gcsfs, with errors that are OSErrors and name the object.

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
REASONS = {
    401: (errno.EACCES, "the bucket does not take the credentials (401): have they expired?"),
    403: (errno.EACCES, "the bucket denies access (403): grant the account the permission"),
    404: (errno.ENOENT, "no such object"),
    412: (errno.EEXIST, "another process has written it"),
    429: (errno.EBUSY, "the bucket is still too busy (429) after several tries"),
}
_object: contextvars.ContextVar[str] = contextvars.ContextVar("object", default="gs://")


class BucketFileSystem(gcsfs.core.GCSFileSystem):
    """gcsfs without its cache of listings: other processes write into the same bucket."""

    def __init__(self, *args: Any, **options: Any):
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # of a project, which only new buckets need
            super().__init__(*args, **options | {"use_listings_cache": False})

    async def _call(self, method: str, path: str, *args: str, **options: Any) -> Any:
        """Make a request, repeated where that may help.

        Raises:
            OSError: with the name of the object, whatever the library raises.
        """
        name = _name_of(path, args, options)
        token = _object.set(name)
        try:
            return await super()._call(method, path, *args, **options)
        except _ERRORS as error:
            raise _as_os_error(error, name) from error
        finally:
            _object.reset(token)

    async def _isdir(self, path: str) -> bool:
        """Whether objects are under a path; gcsfs's takes any error for no."""
        try:
            return (await self._info(path))["type"] == "directory"
        except FileNotFoundError:
            return False


def _as_os_error(error: BaseException, name: str) -> OSError:
    status = _status_of(error)
    if status in REASONS:
        number, reason = REASONS[status]
    else:
        text = (str(error) or type(error).__name__).splitlines()[0]
        number, reason = errno.EIO, f"the bucket is out of reach: {text}"
    return OSError(number, reason, name)  # Python makes a FileNotFoundError of ENOENT, and so on


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
            given = re.search(rb'"name": ("(?:[^"\\]|\\.)*")', bytes(options["data"][:4096]))
            key = json.loads(given[1]) if given else ""
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
