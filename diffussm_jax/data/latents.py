"""Cached latents: the autoencoder's moments of each image and its mirror, listed by a manifest.

<latents_dir>/<data set>-<image size>/<split>/
    manifest.json                        what the moments depend on, and the shards' checksums
    moments-00000-of-00042.array_record  two records per image, the second for its mirror
"""

import dataclasses
import json
import logging
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource

from diffussm_jax.config import Config, DataConfig
from diffussm_jax.config.parsing import ConfigError, from_object, get_field, read_as
from diffussm_jax.config.sizes import size_name
from diffussm_jax.data.at_hand import require_same_images
from diffussm_jax.data.buckets import of_bucket
from diffussm_jax.data.faults import BadRecordError
from diffussm_jax.data.fetching import DamagedError, RemoteFile
from diffussm_jax.data.fingerprint import Fingerprint
from diffussm_jax.data.names import portable_name
from diffussm_jax.data.record_ranges import read_record
from diffussm_jax.data.remote_records import RemoteRecords, open_cache, parallel_reads_of
from diffussm_jax.data.sources import Buckets, Example, Source, check_num_classes
from diffussm_jax.errors import UserError
from diffussm_jax.files.limits import allow_open_files
from diffussm_jax.files.listing import list_files
from diffussm_jax.files.paths import as_path, is_in_bucket

logger = logging.getLogger(__name__)

CACHE_MANIFEST = "manifest.json"
DRAWN = "drawn"  # among the facts of latents that a model drew: what made them
# Fields that a cache and a config that trains from it must have in common.
SHARED_FIELDS = (
    "data.name",
    "data.split",
    "data.image_size",
    "data.buckets",
    "data.channels",
    "autoencoder.name",
    "autoencoder.factor",
    "autoencoder.channels",
    "autoencoder.scale",
)
ENCODE_HINT = "run the same command with --mode=encode"
MEND_HINT = f"{ENCODE_HINT} to mend it"


@dataclasses.dataclass(frozen=True)
class Shard:
    """A finished file of a cache, as its summary and the manifest describe it."""

    file: str
    num_images: int
    num_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]*\w", self.file):
            raise ConfigError(f"file must be the name of a file in the folder, got {self.file!r}")


class Manifest(NamedTuple):
    """A cache's description of itself.

    Attributes:
        facts: what its latents depend on and what they are of, as JSON.
        fingerprint: of the images; among the facts too.
        shards: its files; empty until all are written.
    """

    facts: dict[str, Any]
    fingerprint: Fingerprint
    shards: list[Shard]


@dataclasses.dataclass(frozen=True)
class _CheckedFields:
    """The fields of a manifest that are used besides being compared."""

    shards: list[Shard]
    fingerprint: Fingerprint
    class_names: list[str] | None = None


def record_dtype(config: Config) -> np.dtype:
    """The layout of a record: the label, then the mean and the standard deviation.

    Both are float16 of shape [h, w, c], not yet multiplied by the autoencoder's scale.
    """
    shape = config.grid
    return np.dtype([("label", "<i4"), ("mean", "<f2", shape), ("std", "<f2", shape)])


def cache_folder(config: Config, split: str) -> Path:
    """The folder that holds the moments of a split, or will hold them."""
    root = config.data.latents_dir
    if root is None:
        root = f"{config.data.data_dir or tfds.core.constants.DATA_DIR}/latents"
    name = re.sub(r"[^\w.-]+", "_", portable_name(config.data.name))
    part = re.sub(r"[^\w.-]+", "_", split).strip("_")
    return as_path(root) / f"{name}-{size_name(config.data.image_size)}" / part


def shared_fields(config: Config, split: str) -> dict[str, Any]:
    """The values of `SHARED_FIELDS` in a config, by name, as a manifest has them."""
    values = {field: get_field(config, field) for field in SHARED_FIELDS}
    for field in ("data.name", "autoencoder.name"):
        values[field] = portable_name(values[field])
    for field in ("data.image_size", "data.buckets"):  # tuples are lists in JSON
        values[field] = json.loads(json.dumps(values[field]))
    return values | {"data.split": split}


def require_same(facts: dict[str, Any], expected: dict[str, Any], folder: Path) -> None:
    """Raise UserError naming the first field of which a cache's facts have an unexpected value."""
    for field, value in expected.items():
        if facts.get(field) != value:
            raise UserError(
                f"{folder} holds latents of {field} = {facts.get(field)!r}, but now it is "
                f"{value!r}: change config.data.latents_dir to keep both, or remove that folder "
                "and encode again"
            )


def read_manifest(folder: Path) -> Manifest | None:
    """Read the manifest of a cache; None if there is none.

    Raises:
        UserError: it is damaged, lists files outside its folder, or is of a version that stored
            labels only where the config had classes.
    """
    path, mend = folder / CACHE_MANIFEST, f"remove {folder}"
    try:
        facts = read_as(path, dict, mend=mend)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if "fingerprint" not in facts:
        raise UserError(
            f"{path} does not say which images its latents are of, as an earlier version wrote it, "
            f"so that their labels may be missing: {mend} and {ENCODE_HINT}"
        )
    try:
        checked = from_object(_CheckedFields, facts)
    except ConfigError as error:
        raise UserError(f"{path} is no manifest of latents: {error}; {mend}") from error
    del facts["shards"]
    return Manifest(facts, checked.fingerprint, checked.shards)


def require_images_at_hand(
    config: Config, split: str, fingerprint: Fingerprint, *, mend: str | None = None
) -> None:
    """Raise UserError if the images at hand are not those that a split's cache was made from.

    Args:
        mend: what the user can do. The default is to encode again.
    """
    folder = cache_folder(config, split)
    require_same_images(
        config,
        split,
        fingerprint,
        made=f"the latents in {folder} were encoded from",
        mend=mend
        or "restore them, change config.data.latents_dir to keep both, or remove that folder and "
        "encode again",
    )


class LatentSource:
    """The moments of a split's images, as a source of examples.

    An example has `mean` and `std`, float16 [h, w, c], and `label`, int32.

    Raises:
        UserError: the cache is missing, unfinished, damaged, or made from another data set or with
            another autoencoder.
    """

    def __init__(self, config: Config, split: str):
        folder = cache_folder(config, split)
        self.facts, self.fingerprint, shards = _finished_manifest(config, split, folder)
        check_num_classes(config.data, self.facts.get("class_names"))
        self._folder, self._dtype = folder, record_dtype(config)
        allow_open_files(2 * len(shards))  # those in the cache are locked too
        try:
            self._records = self._open(config.data, shards)
        except (DamagedError, RuntimeError) as error:
            raise UserError(f"{folder} is damaged: {error}; {MEND_HINT}") from error
        self._num_classes = config.data.num_classes

    def _open(self, config: DataConfig, shards: list[Shard]) -> Any:
        records: RemoteRecords | ArrayRecordDataSource
        if is_in_bucket(self._folder):
            files = [_remote_file(self._folder, shard) for shard in shards]
            size = self._dtype.itemsize
            cache = None if config.in_memory else open_cache(config)
            records = RemoteRecords(files, cache, lambda x, i: read_record(x.name, i, size))
        else:
            records = ArrayRecordDataSource([str(self._folder / x.file) for x in shards])
        if config.in_memory:
            logger.info("reading %d records of %s", len(records), self._folder)
            return records.load() if isinstance(records, RemoteRecords) else list(records)
        return records

    @property
    def parallel_reads(self) -> int:
        return parallel_reads_of(self._records)

    @property
    def num_local(self) -> int:
        """How many of the shards at gs:// are in the cache."""
        return self._records.num_local

    def __len__(self) -> int:
        return len(self._records) // 2

    def example(self, index: int, *, mirrored: bool) -> Example:
        try:
            data = self._records[2 * index + mirrored]
            record = np.frombuffer(data, self._dtype)[0]
        except (RuntimeError, ValueError, IndexError) as error:
            raise BadRecordError(f"latents {index} of {self._folder}: {error}") from error
        except FileNotFoundError as error:
            raise UserError(f"{error.filename} is missing: {MEND_HINT}") from error
        label = np.asarray(record["label"], np.int32)
        if self._num_classes and not 0 <= label < self._num_classes:
            raise BadRecordError(
                f"latents {index} of {self._folder}: label {label} is not below "
                f"data.num_classes = {self._num_classes}"
            )
        return {"mean": record["mean"], "std": record["std"], "label": label}


def open_latents(config: Config, split: str) -> LatentSource | Buckets:
    """Open the latents of a split: one cache, or one for each bucket; raises as `LatentSource`."""
    if config.data.buckets is None:
        return LatentSource(config, split)
    sources = [LatentSource(of_bucket(config, x), split) for x in config.data.bucket_sides]
    for latents in sources:
        if latents.fingerprint != sources[0].fingerprint:
            raise UserError(
                f"{cache_folder(config, split).parent.parent} has buckets of unlike images: remove "
                f"it and {ENCODE_HINT}"
            )
    return Buckets(sources)


def encoded_from(source: Source) -> Fingerprint | None:
    """Which images a source has latents of; None where it has images, or drawn latents."""
    first = source.sources[0] if isinstance(source, Buckets) else source
    if isinstance(first, LatentSource) and DRAWN not in first.facts:
        return first.fingerprint
    return None


def _finished_manifest(config: Config, split: str, folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    if manifest is None:
        height, width = config.data.sides
        raise UserError(
            f"{config.data.name!r} at {height} x {width} trains on cached latents, and {folder} "
            f"has none: {ENCODE_HINT} first"
        )
    require_same(manifest.facts, shared_fields(config, split), folder)
    if not manifest.shards:
        raise UserError(f"the encoding into {folder} is not finished: {ENCODE_HINT}")
    files = list_files(folder)
    for shard in manifest.shards:
        if shard.file not in files or files[shard.file].num_bytes != shard.num_bytes:
            raise UserError(f"{folder / shard.file} is missing or damaged: {MEND_HINT}")
    return manifest


def _remote_file(folder: Path, shard: Shard) -> RemoteFile:
    records = range(2 * shard.num_images)
    return RemoteFile(
        str(folder / shard.file), shard.num_bytes, shard.sha256, records, sha256=shard.sha256
    )
