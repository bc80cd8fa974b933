"""Where a path leads: to the disk, to a bucket at gs://, or to the hub at hf://."""

import os
import re
from pathlib import Path

from diffussm_jax.errors import UserError
from diffussm_jax.files.bucket_paths import BucketPath
from diffussm_jax.files.hub.address import is_address, parse


def as_path(name: str | os.PathLike) -> Path:
    """The path of a name: a BucketPath at gs://, else a Path of the disk.

    An export on the hub, `hf://USER/NAME@REVISION`, is downloaded into the hub's cache, and its
    folder there is the path: to be read alone.

    Raises:
        UserError: it is at s3:// or another place that is not served, or cannot be downloaded.
    """
    name = os.fspath(name)
    scheme = re.match(r"([a-z][a-z0-9]*)://", name)
    if scheme is None:
        return Path(name)
    if is_address(name):
        from diffussm_jax.files.hub.snapshot import fetch_export  # half a second

        return fetch_export(parse(name))
    if scheme[1] != "gs":
        raise UserError(
            f"{name}: files are on a disk, at gs:// or hf://, and {scheme[1]}:// is neither"
        )
    if not re.match(r"gs://[^/]+", name):
        raise UserError(f"{name}: the name of a bucket is missing, as in gs://BUCKET/RUN")
    return BucketPath(name)


def is_in_bucket(path: Path) -> bool:
    """Whether a path is at gs://, where objects appear whole and folders are only names."""
    return isinstance(path, BucketPath)
