"""Data sets that TFDS prepared on disk: complete, or named with how to mend them."""

from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource

from diffussm_jax.errors import UserError


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
    files = [Path(x.filename) for x in builder.info.splits[split].file_instructions]
    for file in files:
        if not file.is_file():
            raise damaged(builder.data_dir, f"{file.name} is missing", is_local=is_local)
    try:
        ArrayRecordDataSource([str(file) for file in files])  # reads the end of each
    except (OSError, RuntimeError) as error:
        raise damaged(builder.data_dir, error, is_local=is_local) from error


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
