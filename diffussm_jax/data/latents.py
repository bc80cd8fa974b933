"""Cached latents: the autoencoder's moments of each image and of its mirror, in shards under a manifest.

<latents_dir>/<data set>-<image size>/<split>/
    manifest.json                        what the moments are of, and the shards' checksums
    moments-00000-of-00042.array_record  two records an image, the second of its mirror
"""

import json
import logging
import os
import re
import resource
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource

from diffussm_jax.config import Config
from diffussm_jax.data.faults import BadRecordError
from diffussm_jax.data.names import portable_name
from diffussm_jax.data.sources import Example, check_num_classes
from diffussm_jax.errors import UserError

logger = logging.getLogger(__name__)

MANIFEST_FILE = "manifest.json"
# What a cache and a config that trains from it must have in common.
SHARED_FIELDS = (
    "data.name",
    "data.split",
    "data.image_size",
    "data.channels",
    "autoencoder.name",
    "autoencoder.factor",
    "autoencoder.channels",
    "autoencoder.scale",
)
ENCODE = "run the same command with --mode=encode"
MEND = f"{ENCODE} to mend it"
SPARE_FILES = 256  # open files that are not shards


def record_dtype(config: Config) -> np.dtype:
    """The layout of a record: the label, then float16 mean and standard deviation, unscaled, [h, w, c] each."""
    shape = config.grid
    return np.dtype([("label", "<i4"), ("mean", "<f2", shape), ("std", "<f2", shape)])


def cache_folder(config: Config, split: str) -> Path:
    """Where the moments of a split are, or will be."""
    root = config.data.latents_dir
    if root is None:
        root = f"{config.data.data_dir or tfds.core.constants.DATA_DIR}/latents"
    name = re.sub(r"[^\w.-]+", "_", portable_name(config.data.name))
    part = re.sub(r"[^\w.-]+", "_", split).strip("_")
    return Path(os.path.expanduser(root)) / f"{name}-{config.data.image_size}" / part


def shared_fields(config: Config, split: str) -> dict[str, Any]:
    """The config's part of a manifest, by the names of the fields."""
    values: dict[str, Any] = {}
    for field in SHARED_FIELDS:
        section, name = field.split(".")
        values[field] = getattr(getattr(config, section), name)
    for field in ("data.name", "autoencoder.name"):
        values[field] = portable_name(values[field])
    return values | {"data.split": split}


def require_same(manifest: dict[str, Any], wanted: dict[str, Any], folder: Path):
    """Raise UserError naming the first of the `wanted` fields that differs in a manifest."""
    for field, value in wanted.items():
        if manifest.get(field) != value:
            raise UserError(
                f"{folder} holds latents of {field} = {manifest.get(field)!r}, but now it is {value!r}: "
                "change config.data.latents_dir to keep both, or remove that folder and encode again"
            )


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a cache; None if there is none.

    Raises:
        UserError: it is damaged.
    """
    path = folder / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}; remove {folder}") from error
    if not isinstance(manifest, dict) or not _lists_shards(manifest):
        raise UserError(f"{path} is no manifest of latents; remove {folder}")
    return manifest


def _lists_shards(manifest: dict[str, Any]) -> bool:
    """Whether the shards are files of the manifest's own folder, and the classes texts."""
    shards, names = manifest.get("shards"), manifest.get("class_names")
    return (
        isinstance(shards, list)
        and all(isinstance(shard, dict) for shard in shards)
        and all(_is_file_name(shard.get("file")) for shard in shards)
        and all(isinstance(shard.get("num_bytes"), int) for shard in shards)
        and (names is None or isinstance(names, list))
        and all(isinstance(name, str) for name in names or ())
    )


def _is_file_name(name: Any) -> bool:
    return isinstance(name, str) and re.fullmatch(r"[\w.-]*\w", name) is not None


class LatentSource:
    """The moments of a split; examples have `mean` and `std`, float16 [h, w, c], and `label`, int32.

    Raises:
        UserError: the cache is missing, unfinished, damaged, or of other images or another autoencoder.
    """

    def __init__(self, config: Config, split: str):
        folder = cache_folder(config, split)
        self.facts = _finished_manifest(config, split, folder)
        shards = self.facts.pop("shards")
        check_num_classes(config.data, self.facts.get("class_names"))
        paths = [str(folder / shard["file"]) for shard in shards]
        _allow_open_files(len(paths))
        try:
            self._records = ArrayRecordDataSource(paths)
            if config.data.in_memory:
                logger.info("reading %d records of %s", len(self._records), folder)
                self._records = list(self._records)
        except RuntimeError as error:
            raise UserError(f"{folder} is damaged: {error}; {MEND}") from error
        self._folder, self._dtype = folder, record_dtype(config)
        self._num_classes = config.data.num_classes

    def __len__(self) -> int:
        return len(self._records) // 2

    def example(self, index: int, *, mirrored: bool) -> Example:
        try:
            data = self._records[2 * index + mirrored]
            record = np.frombuffer(data, self._dtype)[0]
        except (RuntimeError, ValueError, IndexError) as error:
            raise BadRecordError(f"latents {index} of {self._folder}: {error}") from error
        label = np.asarray(record["label"] if self._num_classes else 0, np.int32)
        if self._num_classes and not 0 <= label < self._num_classes:
            raise BadRecordError(
                f"latents {index} of {self._folder}: label {label} is not below data.num_classes = "
                f"{self._num_classes}"
            )
        return {"mean": record["mean"], "std": record["std"], "label": label}


def _finished_manifest(config: Config, split: str, folder: Path) -> dict[str, Any]:
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(
            f"{config.data.name!r} at {config.data.image_size} x {config.data.image_size} trains on cached "
            f"latents, and {folder} has none: {ENCODE} first"
        )
    require_same(manifest, shared_fields(config, split), folder)
    if not manifest["shards"]:
        raise UserError(f"the encoding into {folder} is not finished: {ENCODE}")
    for shard in manifest["shards"]:
        path = folder / shard["file"]
        if not path.is_file() or path.stat().st_size != shard["num_bytes"]:
            raise UserError(f"{path} is missing or damaged: {MEND}")
    return manifest


def _allow_open_files(num_files: int) -> None:
    """Every shard stays open, and the usual limit of 1,024 is less than ImageNet has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = num_files + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
