"""The image files of a folder: every mode finds them here, in one order."""

import functools
import hashlib
import logging
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from diffussm_jax.data import formats
from diffussm_jax.errors import UserError
from diffussm_jax.files import is_desktop_litter
from diffussm_jax.files.listing import Entry, list_objects
from diffussm_jax.files.paths import is_in_bucket
from diffussm_jax.files.ranges import read_object

logger = logging.getLogger(__name__)

PARALLEL_READS = 32  # of files in a bucket
_MAX_KINDS = 8  # of files left out, in a line of the log

Identity = tuple[int, int]  # device and inode


class ImageFiles(NamedTuple):
    """The images of a folder and its sub-folders.

    Attributes:
        paths: the images, in the order of their names.
        left_out: the number of other files, by what they are.
        entries: of a bucket what the listing said of each image.
    """

    paths: list[Path]
    left_out: Counter[str]
    entries: list[Entry]


def find_images(folder: Path, *, field: str) -> ImageFiles:
    """Find the files below a folder whose suffix is an image's, and log how many were left out.

    Symbolic links are followed. Hidden files and folders are left out, and what desktop systems
    leave behind is not even counted.

    Args:
        field: the field of the config that chose the folder, for errors.

    Raises:
        UserError: the folder is missing, cannot be read, or has no images.
    """
    if not folder.is_dir():
        raise UserError(f"{field}: there is no folder {readable(folder)}")
    found = ImageFiles([], Counter(), [])
    try:
        for path, entry in _walk(folder):
            if reason := _why_left_out(path):
                found.left_out[reason] += 1
                continue
            found.paths.append(path)
            if entry is not None:
                found.entries.append(entry)
    except OSError as error:
        where = readable(error.filename or folder)
        raise UserError(f"{field}: {where} cannot be read: {error.strerror}") from error
    if not found.paths:
        raise UserError(f"{field}: {readable(folder)} has no images{_describe(found.left_out)}")
    _log_once(f"{len(found.paths)} images in {readable(folder)}{_describe(found.left_out)}")
    return found


def has_images(folder: Path) -> bool:
    """Whether there is any image below a folder; it need not exist, nor be listed to its end."""
    return folder.is_dir() and any(_why_left_out(path) is None for path, _ in _walk(folder))


def sub_folders(folder: Path) -> list[Path]:
    """The folders in a folder in the order of their names: the classes of its images."""
    folders = (x.path for x in _list(folder) if x.is_folder)
    return [x for x in folders if not x.name.startswith(".") and not is_desktop_litter(x.name)]


def read_files(paths: Sequence[Path], *, field: str) -> Iterator[bytes]:
    """Read image files, those in a bucket many at a time; raises as `read_file` does."""
    if not paths or not is_in_bucket(paths[0]):
        yield from (read_file(path, field=field) for path in paths)
        return
    waiting: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        for path in paths:
            waiting.append(pool.submit(read_file, path, field=field))
            if len(waiting) == PARALLEL_READS:
                yield waiting.popleft().result()
        yield from (x.result() for x in waiting)


def read_file(path: Path, *, field: str) -> bytes:
    """Read an image file; raise UserError that names the field and the file if it cannot be."""
    try:
        return read_object(str(path)) if is_in_bucket(path) else path.read_bytes()
    except OSError as error:
        raise UserError(f"{field}: {readable(path)} cannot be read: {error.strerror}") from error


def sha256_of_image(path: Path, *, field: str) -> str:
    """The SHA-256 of an image file, in hexadecimal; raises as `read_file` does."""
    return hashlib.sha256(read_file(path, field=field)).hexdigest()


def readable(path: str | os.PathLike[str]) -> str:
    """A path or name as text: bytes that are not UTF-8 are written as `\\xe9`."""
    return os.fsencode(path).decode(errors="backslashreplace")


class _Child(NamedTuple):
    """What is in a folder; in a bucket with the entry of each file."""

    path: Path
    is_folder: bool
    entry: Entry | None = None


def _list(folder: Path) -> list[_Child]:
    """What is in a folder, in the order of the names."""
    if is_in_bucket(folder):
        return [_Child(folder / name, x is None, x) for name, x in list_objects(folder).items()]
    with os.scandir(folder) as entries:
        children = sorted(entries, key=lambda entry: entry.name)
    return [_Child(Path(x.path), x.is_dir()) for x in children]


def _walk(
    folder: Path, around: frozenset[Identity] | None = None
) -> Iterator[tuple[Path, Entry | None]]:
    """Yield the files below a folder, and the folders that are not entered.

    Args:
        around: of the folders that this one is in, through links too; a bucket has no links.
    """
    if not is_in_bucket(folder):
        around = _above(folder) if around is None else around
        identity = _identity(folder)
        if identity in around:
            yield folder, None
            return
        around |= {identity}
    for child in _list(folder):
        if is_desktop_litter(child.path.name):
            continue
        if child.is_folder and not child.path.name.startswith("."):
            yield from _walk(child.path, around)
        else:
            yield child.path, child.entry


def _above(folder: Path) -> frozenset[Identity]:
    return frozenset(map(_identity, folder.resolve().parents))


def _identity(folder: Path) -> Identity:
    stat = folder.stat()
    return stat.st_dev, stat.st_ino


def _why_left_out(path: Path) -> str | None:
    """What a file is that is no image, for the log; None for an image."""
    if path.name.startswith("."):
        return "hidden"
    suffix = path.suffix.lower()
    is_image = suffix in formats.suffixes()
    if is_image and (is_in_bucket(path) or path.is_file()):
        return None  # first: of a million images each is looked at once
    if not is_in_bucket(path) and path.is_dir():
        return "linked to a folder around it"
    return "linked to nothing" if is_image else formats.why_unread(suffix)


def _describe(left_out: Counter[str]) -> str:
    if not left_out:
        return ""
    kinds = [f"{num} {kind}" for kind, num in left_out.most_common(_MAX_KINDS)]
    if len(left_out) > _MAX_KINDS:
        kinds.append("others")
    return f"; left out {left_out.total()}: {', '.join(kinds)}"


@functools.cache
def _log_once(line: str) -> None:
    """Log a line, but once: the training and the held-out split are of one folder."""
    logger.info(line)
