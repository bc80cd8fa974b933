"""Many images as a job: drawn range by range into a folder, so that a kill costs one range."""

import dataclasses
import itertools
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffussm_jax.config.parsing import read_as
from diffussm_jax.errors import Preempted, UserError
from diffussm_jax.files import array_shape, replacing, require_only, write_json, writing_to
from diffussm_jax.parallel.distributed import is_first, wait_for_all
from diffussm_jax.parallel.preemption import PreemptionNotice
from diffussm_jax.sampling.images import ImageArray, LabelArray, LatentArray
from diffussm_jax.shapes import ceil_div
from diffussm_jax.workdir.lock import is_lock

logger = logging.getLogger(__name__)

MANIFEST_FILE = "job.json"
SECONDS_BETWEEN_LINES = 30.0


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a job's folder holds: what made the images, and the images of a file."""

    facts: dict[str, Any]
    range_size: int


@dataclasses.dataclass(frozen=True)
class Samples:
    """The images of a finished job, on disk. Iterating gives (images, labels) of each range.

    Attributes:
        facts: what made the images, as JSON.
        labels: [num], or None without classes.
    """

    folder: Path
    num: int
    range_size: int
    facts: dict[str, Any]
    labels: LabelArray | None

    def __iter__(self) -> Iterator[tuple[ImageArray | LatentArray, LabelArray | None]]:
        for part in ranges(self.num, self.range_size):
            labels = None if self.labels is None else self.labels[part.start : part.stop]
            yield _read_images(_file(self.folder, part)), labels

    def images(self) -> Iterator[ImageArray]:
        """The images of each range in turn."""
        return (images for images, _ in self)

    def part(self, number: int) -> ImageArray:
        """The images of one range: those from `number * range_size` on."""
        return _read_images(_file(self.folder, ranges(self.num, self.range_size)[number]))

    def first(self, num: int) -> ImageArray:
        """The first `num` images, or all where there are fewer."""
        num_ranges = ceil_div(num, self.range_size)
        return np.concatenate(list(itertools.islice(self.images(), num_ranges)))[:num]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape [num h w c] of all images together."""
        first = _file(self.folder, ranges(self.num, self.range_size)[0])
        _, height, width, channels = array_shape(first)
        return self.num, height, width, channels


def draw_to(
    folder: Path,
    draw_range: Callable[[range], ImageArray | LatentArray],
    *,
    num: int,
    range_size: int,
    facts: dict[str, Any],
    labels: LabelArray | None,
) -> Samples:
    """Draw into a folder those of a job's images that are not there yet.

    The ranges that an earlier job with the same facts has finished are kept, with the size that
    they have; those of another job are removed. Each process draws its share of the ranges: all of
    them call this, with a folder that they share.

    Args:
        draw_range: gives the images at consecutive indices.
        num: how many images there are to be.
        range_size: images of a file, and of a call of `draw_range`.
        facts: whatever the images depend on, as JSON.
        labels: [num], for the result; None without classes.

    Raises:
        UserError: the folder cannot be written, or is not one for all processes.
        Preempted: the process was told to stop.
    """
    if is_first():
        _begin(folder, facts, range_size)
    wait_for_all("samples begun")
    manifest = _read_manifest(folder)
    if manifest is None:
        raise UserError(
            f"{folder} is another folder on process {jax.process_index()} than on process 0: all "
            "need one that they share"
        )
    size = manifest.range_size
    mine = ranges(num, size)[jax.process_index() :: jax.process_count()]
    missing = [part for part in mine if not _is_finished(folder, part)]
    progress = _Progress(sum(map(len, mine)), sum(map(len, missing)))
    with PreemptionNotice() as notice:
        for part in missing:
            if notice.received:
                raise Preempted(f"the finished images are in {folder}")
            _write(_file(folder, part), draw_range(part))
            progress.add(len(part))
    wait_for_all("samples drawn")
    return Samples(folder, num, size, manifest.facts, labels)


def ranges(num: int, size: int) -> list[range]:
    """0 .. num cut into ranges of `size`, the last one perhaps shorter."""
    return [range(start, min(start + size, num)) for start in range(0, num, size)]


def _begin(folder: Path, facts: dict[str, Any], range_size: int) -> None:
    """Make the folder this job's: keep its files if they are the same job's, else empty it."""
    previous = _read_manifest(folder)
    if previous is not None:
        if previous.facts == json.loads(json.dumps(facts)):  # lists for tuples, as it was read
            return
        logger.info("%s holds images of another model or other options: they are replaced", folder)
    else:
        require_only(folder, _is_of_a_job, named=str(folder))
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path in [folder / MANIFEST_FILE, *folder.glob(_file_name("*", "*"))]:
            path.unlink(missing_ok=True)
        write_json(folder / MANIFEST_FILE, dataclasses.asdict(Manifest(facts, range_size)))


def _read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder; None if it has none or a damaged one."""
    try:
        return read_as(folder / MANIFEST_FILE, Manifest)
    except (FileNotFoundError, NotADirectoryError, UserError):
        return None


def _file(folder: Path, part: range) -> Path:
    return folder / _file_name(f"{part.start:07d}", f"{part.stop:07d}")


def _file_name(start: str, stop: str) -> str:
    return f"images-{start}-{stop}.npy"


def _is_of_a_job(name: str) -> bool:
    """Whether a file is of a job, perhaps a temporary one, or the lock of the folder."""
    visible = name.removeprefix(".")
    is_range = re.fullmatch(_file_name(r"\d{7,}", r"\d{7,}"), visible) is not None
    return is_range or visible == MANIFEST_FILE or is_lock(name)


def _read_images(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        return np.load(file)


def _write(path: Path, images: ImageArray | LatentArray) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, images)


def _is_finished(folder: Path, part: range) -> bool:
    try:
        return array_shape(_file(folder, part))[0] == len(part)
    except (OSError, ValueError):
        return False


class _Progress:
    """Logs how far a job is and how long the rest takes at the speed so far."""

    def __init__(self, num: int, num_missing: int):
        self._num, self._left, self._drawn = num, num_missing, 0
        if 0 < num_missing < num:
            logger.info("%d of %d images are there already", num - num_missing, num)
        self._start = self._last_line = time.monotonic()

    def add(self, num: int) -> None:
        self._left, self._drawn = self._left - num, self._drawn + num
        now = time.monotonic()
        if self._left and now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        speed = self._drawn / max(now - self._start, 1e-9)
        minutes, seconds = divmod(round(self._left / speed), 60)
        logger.info(
            "%d of %d images, %.3g a second, %d min %02d s left",
            self._num - self._left,
            self._num,
            speed,
            minutes,
            seconds,
        )
