"""Data sets that TFDS prepared on a disk or at gs://: complete, or named with how to mend them."""

import functools
import hashlib
import re
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader

from diffussm_jax.config import DataConfig
from diffussm_jax.data.fetching import RemoteFile
from diffussm_jax.data.remote_records import RemoteRecords, open_cache, open_reader
from diffussm_jax.errors import StorageError, UserError
from diffussm_jax.files.limits import allow_open_files
from diffussm_jax.files.listing import list_files
from diffussm_jax.files.paths import as_path, is_in_bucket


class LocalBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Builder of a data set that is prepared on first use, because that downloads nothing.

    Raises:
        UserError: it is prepared, and its description is damaged.
    """

    def __init__(self, **options: Any):
        try:
            super().__init__(**options)
        # TFDS raises anything at all for a damaged description.
        except Exception as error:
            raise damaged(self.data_dir, error, is_local=True) from error


def require_complete(builder: tfds.core.DatasetBuilder, split: str) -> None:
    """Raise UserError unless all files of a split of a prepared data set are there and open."""
    is_local = isinstance(builder, LocalBuilder)
    folder = as_path(builder.data_dir)
    files = [Path(x.filename) for x in builder.info.splits[split].file_instructions]
    there = list_files(folder)
    for file in files:
        if file.name not in there:
            raise damaged(folder, f"{file.name} is missing", is_local=is_local)
    if is_in_bucket(folder):
        return  # reading the end of each would take longer than a start may
    try:
        ArrayRecordDataSource([str(file) for file in files])  # reads the end of each
    except (OSError, RuntimeError) as error:
        raise damaged(builder.data_dir, error, is_local=is_local) from error


def open_records(builder: tfds.core.DatasetBuilder, split: str, config: DataConfig) -> Any:
    """Open the records of a split, a sequence of dicts whose images are not decoded."""
    records = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    parts = builder.info.splits[split].file_instructions
    allow_open_files(2 * len(parts))  # those in the cache are locked too
    folder = as_path(builder.data_dir)
    if is_in_bucket(folder):
        there = list_files(folder)
        files = []
        for part in parts:
            num_bytes, version = there[Path(part.filename).name]
            key = hashlib.sha256(f"{part.filename} {num_bytes} {version}".encode()).hexdigest()
            rows = range(part.skip, part.skip + part.take)
            files.append(RemoteFile(part.filename, num_bytes, key, rows))
        in_memory = config.in_memory and config.space == "pixels"
        remote = RemoteRecords(files, None if in_memory else open_cache(config), _read_one)
        try:
            records.data_source = remote.load() if in_memory else remote
        except RuntimeError as error:
            raise damaged(folder, error, is_local=isinstance(builder, LocalBuilder)) from error
    return records


@functools.cache
def _reader(name: str) -> ArrayRecordReader:
    return open_reader(name)


def _read_one(file: RemoteFile, index: int) -> bytes:
    """Read a record at gs:// by array_record: those of TFDS have any size and are compressed."""
    try:
        return _reader(file.name).read([index])[0]
    except RuntimeError as error:
        # Of google-cloud-cpp, which array_record reads buckets with, and which has tried again.
        refusal = re.search(r"\w+, with a last message of (.*?); reading ", str(error))
        if refusal is None:
            raise
        raise StorageError(file.name, refusal[1], may_pass=False) from error


def require_description(builder: tfds.core.DatasetBuilder) -> None:
    """Raise UserError if a prepared data set lists no splits: it has lost its description."""
    if not builder.info.splits:
        is_local = isinstance(builder, LocalBuilder)
        raise damaged(builder.data_dir, "dataset_info.json is missing", is_local=is_local)


def damaged(folder: str | Path, reason: Exception | str, *, is_local: bool) -> UserError:
    """The error of a prepared data set, with the mend.

    Args:
        is_local: whether it is prepared on first use.
    """
    mend = f"remove {folder}, and the same command prepares it again"
    if not is_local:
        mend = "copy its files again, or remove that folder and prepare it again"
    first_line = str(reason).partition("\n")[0]
    return UserError(f"the prepared data set in {folder} is damaged: {first_line}; {mend}")
