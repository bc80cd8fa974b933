"""The image files of a folder: every mode finds them here, in one order."""

import functools
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from diffussm_jax.data import formats
from diffussm_jax.errors import UserError
from diffussm_jax.files import is_desktop_litter

logger = logging.getLogger(__name__)

_MAX_KINDS = 8  # of files left out, in a line of the log

Identity = tuple[int, int]  # device and inode


class ImageFiles(NamedTuple):
    """The images of a folder and its sub-folders.

    Attributes:
        paths: the images, in the order of their names.
        left_out: the number of other files, by what they are.
    """

    paths: list[Path]
    left_out: Counter[str]


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
    found = ImageFiles([], Counter())
    try:
        for path in _walk(folder, _above(folder)):
            if reason := _why_left_out(path):
                found.left_out[reason] += 1
            else:
                found.paths.append(path)
    except OSError as error:
        where = readable(error.filename or folder)
        raise UserError(f"{field}: {where} cannot be read: {error.strerror}") from error
    if not found.paths:
        raise UserError(f"{field}: {readable(folder)} has no images{_list(found.left_out)}")
    _log_once(f"{len(found.paths)} images in {readable(folder)}{_list(found.left_out)}")
    return found


def has_images(folder: Path) -> bool:
    """Whether there is any image below a folder; it need not exist, nor be listed to its end."""
    return folder.is_dir() and any(_why_left_out(x) is None for x in _walk(folder, _above(folder)))


def sub_folders(folder: Path) -> list[Path]:
    """The folders in a folder in the order of their names: the classes of its images."""
    children = (x for x in folder.iterdir() if not x.name.startswith("."))
    return sorted(x for x in children if x.is_dir() and not is_desktop_litter(x.name))


def read_file(path: Path, *, field: str) -> bytes:
    """Read an image file; raise UserError that names the field and the file if it cannot be."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{field}: {readable(path)} cannot be read: {error.strerror}") from error


def sha256_of_image(path: Path, *, field: str) -> str:
    """The SHA-256 of an image file, in hexadecimal; raises as `read_file` does."""
    return hashlib.sha256(read_file(path, field=field)).hexdigest()


def readable(path: str | os.PathLike[str]) -> str:
    """A path or name as text: bytes that are not UTF-8 are written as `\\xe9`."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _walk(folder: Path, around: frozenset[Identity]) -> Iterator[Path]:
    """Yield the files below a folder, and the folders that are not entered."""
    identity = _identity(folder)
    if identity in around:
        yield folder
        return
    with os.scandir(folder) as entries:
        children = sorted(entries, key=lambda entry: entry.name)
    for child in children:
        path, is_hidden = Path(child.path), child.name.startswith(".")
        if is_desktop_litter(child.name):
            continue
        if child.is_dir() and not is_hidden:
            yield from _walk(path, around | {identity})
        else:
            yield path


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
    if is_image and path.is_file():  # first: of a million images each is looked at once
        return None
    if path.is_dir():
        return "linked to a folder around it"
    return "linked to nothing" if is_image else formats.why_unread(suffix)


def _list(left_out: Counter[str]) -> str:
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
