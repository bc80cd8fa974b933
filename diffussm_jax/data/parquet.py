"""A split of a data set in parquet: its rows, columns and classes, from its files' footers."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tensorflow_datasets as tfds

from diffussm_jax.config import DataConfig
from diffussm_jax.data.fingerprint import Fingerprint, of_parquet
from diffussm_jax.data.names import portable_name
from diffussm_jax.data.parquet_columns import Columns, find_columns
from diffussm_jax.data.parquet_files import find_files, no_split
from diffussm_jax.data.row_groups import Records, RowGroups
from diffussm_jax.errors import UserError


class ParquetSplit:
    """The rows of a split, or of slices of several.

    Raises:
        UserError: files are missing or damaged, or the split or a column is not there.
    """

    def __init__(self, config: DataConfig, split: str):
        self._config = config
        self.files = find_files(config, split)
        self._named = f"config.data.name: {config.name}"
        self._footers = [_read_footer(path) for path in self.files.paths]
        schema = self._footers[0].schema.to_arrow_schema()
        self._columns = find_columns(schema, config, named=self._named)
        for path, footer in zip(self.files.paths, self._footers):
            _require_columns(self._columns, schema, footer.schema.to_arrow_schema(), path)
        self._indices = self._rows(split)
        if not len(self._indices):
            raise UserError(f"split {split!r} of data set {config.name!r} has no images")

    def records(self) -> Records:
        """The records of the split."""
        groups = RowGroups(
            self.files.paths,
            self._footers,
            self._columns,
            max_bytes=int(self._config.parquet_cache_gb * 2**30),
        )
        return Records(groups, self._columns, self._indices)

    def class_names(self) -> list[str] | None:
        """The names of the classes: those of a ClassLabel, or the numbers of an integer column.

        Raises:
            UserError: a label is not below data.num_classes.
        """
        columns, num_classes = self._columns, self._config.num_classes
        if columns.label is None or columns.class_names is not None:
            return columns.class_names
        largest = self._largest_label(columns.label)
        if num_classes and largest >= num_classes:
            raise UserError(
                f"data set {self._config.name!r} has labels up to {largest} in {columns.label!r}, "
                f"but config.data.num_classes = {num_classes}: set "
                f"--config.data.num_classes={largest + 1}, or 0 to train without labels"
            )
        return [str(label) for label in range(num_classes or largest + 1)]

    def fingerprint(self) -> Fingerprint:
        """The fingerprint of the images and of their labels."""
        breaks = np.flatnonzero(np.diff(self._indices, prepend=-2) != 1)  # where slices begin
        starts = [[int(self._indices[x]), int(x)] for x in breaks]
        return of_parquet(
            portable_name(self._config.name),
            self.files.paths,
            num_images=len(self._indices),
            read={"rows": starts, "image": self._columns.image, "label": self._columns.label},
        )

    def _rows(self, split: str) -> np.ndarray:
        """The rows of a split among those of all files, as TFDS reads its slices."""
        footers = iter(self._footers)
        rows: dict[str, range] = {}
        start = 0
        for name, files in self.files.names.items():
            num = sum(next(footers).num_rows for _ in files)
            rows[name] = range(start, start + num)
            start += num
        infos = [
            tfds.core.SplitInfo(name=name, shard_lengths=[len(run)], num_bytes=0)
            for name, run in rows.items()
        ]
        try:
            parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(
                tfds.core.splits.SplitDict(infos)
            )
        except (ValueError, NotImplementedError) as error:
            raise no_split(self._config.name, split, rows) from error
        runs = [rows[part.splitname][part.from_ : part.to] for part in parts]
        return np.concatenate([np.arange(run.start, run.stop) for run in runs])

    def _largest_label(self, column: str) -> int:
        """The largest label of the files, from their footers where these have statistics."""
        largest = -1
        for path, footer in zip(self.files.paths, self._footers):
            values = _maxima(footer, column)
            if None in values:
                values = [_read_largest(path, column)]
            largest = max(largest, *(x for x in values if x is not None), -1)
        return largest


def _maxima(footer: pq.FileMetaData, column: str) -> list[int | None]:
    """The largest value of a column in each row group; None where the footer does not say."""
    leaf = [footer.schema.column(x).path for x in range(footer.num_columns)].index(column)
    statistics = [footer.row_group(x).column(leaf).statistics for x in range(footer.num_row_groups)]
    return [x.max if x is not None and x.has_min_max else None for x in statistics]


def _read_largest(path: Path, column: str) -> int | None:
    with _naming(path), pq.ParquetFile(path) as file:  # read_table would take `a=1/` for a column
        return pc.max(file.read([column]).column(0)).as_py()


def _read_footer(path: Path) -> pq.FileMetaData:
    with _naming(path):
        return pq.read_metadata(path)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn the errors of reading a file into UserErrors that name it."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"config.data.name: {path} is damaged: {reason}; bring the file again"
        ) from error


def _require_columns(columns: Columns, first: pa.Schema, schema: pa.Schema, path: Path) -> None:
    """Raise UserError unless a file has the columns of the first one, with their types."""
    for name in filter(None, (columns.image, columns.label)):
        index = schema.get_field_index(name)
        if index < 0 or schema.field(index).type != first.field(name).type:
            kind = first.field(name).type
            raise UserError(
                f"config.data.name: {path} has no column {name} of {kind}, which other files of "
                "the data set have"
            )
