"""Many images as a job: drawn range by range into a folder, so that a kill costs one range.

Image i is a function of (seed, i) and the options: its label and all its noise come from `image_keys`.
"""

import dataclasses
import itertools
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from diffussm_jax.config import SampleConfig
from diffussm_jax.errors import Preempted, UserError
from diffussm_jax.files import replacing, write_text
from diffussm_jax.parallel.distributed import is_first, wait_for_all
from diffussm_jax.parallel.preemption import PreemptionNotice
from diffussm_jax.sampling.images import ImageArray, LabelArray
from diffussm_jax.sampling.inputs import image_labels
from diffussm_jax.shapes import ceil_div

logger = logging.getLogger(__name__)

MANIFEST_FILE = "job.json"
SECONDS_BETWEEN_LINES = 30.0

# What the images do not depend on, or what `facts` of a model say better.
_FREE_OPTIONS = {"num", "batch_size", "outputs", "ema", "ema_length", "autoguidance"}


@runtime_checkable
class Model(Protocol):
    """What draws: `sampling.model.TrainedModel`."""

    @property
    def num_classes(self) -> int: ...

    def facts(self, options: SampleConfig) -> dict[str, Any]:
        """Whatever of the model the images depend on, as JSON."""

    def images_per_call(self, options: SampleConfig) -> int:
        """How many images the devices draw at once."""

    def draw_range(self, options: SampleConfig, indices: range) -> ImageArray:
        """The images of the job at consecutive indices."""


@dataclasses.dataclass(frozen=True)
class Samples:
    """The images of a finished job, on disk. Iterating gives (images, labels) of each range in turn.

    Attributes:
        facts: what made the images, as JSON.
        labels: of all images; None without classes.
    """

    folder: Path
    num: int
    range_size: int
    facts: dict[str, Any]
    labels: LabelArray | None

    def __iter__(self) -> Iterator[tuple[ImageArray, LabelArray | None]]:
        for part in ranges(self.num, self.range_size):
            labels = None if self.labels is None else self.labels[part.start : part.stop]
            yield np.load(_file(self.folder, part)), labels

    def images(self) -> Iterator[ImageArray]:
        return (images for images, _ in self)

    def part(self, number: int) -> ImageArray:
        """The images of a range: those from `number * range_size` on."""
        return np.load(_file(self.folder, ranges(self.num, self.range_size)[number]))

    def first(self, num: int) -> ImageArray:
        """The first `num` images, or all where they are fewer."""
        num_ranges = ceil_div(num, self.range_size)
        return np.concatenate(list(itertools.islice(self.images(), num_ranges)))[:num]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of all images together."""
        first = np.load(_file(self.folder, ranges(self.num, self.range_size)[0]), mmap_mode="r")
        return self.num, *first.shape[1:]


def draw_to(folder: Path, model: Model, options: SampleConfig) -> Samples:
    """Draw `options.num` images into a folder, or what is missing of them there.

    Ranges that a job with the same model and options has finished are kept, those of another job are removed. Each process draws
    its part of the ranges: all of them call this, and share the folder.

    Raises:
        UserError: the folder cannot be written, or is not one for all processes.
        Preempted: the process was told to stop.
    """
    if is_first():
        _begin(folder, model, options)
    wait_for_all("samples begun")
    manifest = _read_manifest(folder)
    if manifest is None:
        raise UserError(
            f"{folder} is another folder on process {jax.process_index()} than on process 0: all need one that they share"
        )
    size = manifest["range_size"]
    mine = ranges(options.num, size)[jax.process_index() :: jax.process_count()]
    missing = [part for part in mine if not _is_finished(folder, part)]
    progress = _Progress(sum(map(len, mine)), sum(map(len, missing)))
    with PreemptionNotice() as notice:
        for part in missing:
            if notice.received:
                raise Preempted(f"the finished images are in {folder}")
            _write(_file(folder, part), model.draw_range(options, part))
            progress.add(len(part))
    wait_for_all("samples drawn")
    labels = image_labels(options, model.num_classes, np.arange(options.num))
    return Samples(folder, options.num, size, manifest["facts"], labels)


def ranges(num: int, size: int) -> list[range]:
    """0 .. num cut into ranges of `size`, the last one shorter."""
    return [range(start, min(start + size, num)) for start in range(0, num, size)]


def _begin(folder: Path, model: Model, options: SampleConfig) -> None:
    """Make the folder this job's: as it is where it holds the same job, else emptied."""
    facts = _facts(model, options)
    found = _read_manifest(folder)
    if found is not None and found["facts"] == facts:
        return
    if found is not None:
        logger.info("%s holds images of another model or other options: they are replaced", folder)
    call = model.images_per_call(options)
    size = ceil_div(min(options.batch_size, options.num), call) * call
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in [folder / MANIFEST_FILE, *folder.glob(_file_name("*", "*"))]:
            path.unlink(missing_ok=True)
        manifest = {"facts": facts, "range_size": size}
        write_text(folder / MANIFEST_FILE, json.dumps(manifest, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error


def _facts(model: Model, options: SampleConfig) -> dict[str, Any]:
    values = dataclasses.asdict(options)
    kept = {name: x for name, x in values.items() if name not in _FREE_OPTIONS}
    facts = {"model": model.facts(options), "sample": kept}
    return json.loads(json.dumps(facts))  # as it will be read: lists


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / MANIFEST_FILE).read_text())
        return found if {"facts", "range_size"} <= found.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _file(folder: Path, part: range) -> Path:
    return folder / _file_name(f"{part.start:07d}", f"{part.stop:07d}")


def _file_name(start: str, stop: str) -> str:
    return f"images-{start}-{stop}.npy"


def _write(path: Path, images: ImageArray) -> None:
    """Write a range; its name appears when it is whole."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, images)


def _is_finished(folder: Path, part: range) -> bool:
    try:
        return len(np.load(_file(folder, part), mmap_mode="r")) == len(part)
    except (OSError, ValueError):
        return False


class _Progress:
    """Lines of how far a job is and how long the rest takes at the speed so far."""

    def __init__(self, num: int, num_missing: int):
        self._num, self._left, self._drawn = num, num_missing, 0
        if 0 < num_missing < num:
            logger.info("%d of %d images are there already", num - num_missing, num)
        self._start = self._told = time.monotonic()

    def add(self, num: int) -> None:
        self._left, self._drawn = self._left - num, self._drawn + num
        now = time.monotonic()
        if self._left and now - self._told < SECONDS_BETWEEN_LINES:
            return
        self._told = now
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
