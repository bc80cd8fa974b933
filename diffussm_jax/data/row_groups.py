"""Random access to the rows of parquet files, by row groups of which the newest stay in memory."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from diffussm_jax.data.parquet_columns import Columns


class RowGroups:
    """Reads row groups of files as tables; those that were used last are kept.

    Threads that ask for one row group read it once.

    Args:
        footers: of each file, read before.
        max_bytes: of the tables that are kept; the newest is, whatever its size.
    """

    def __init__(
        self,
        files: Sequence[Path],
        footers: Sequence[pq.FileMetaData],
        columns: Columns,
        *,
        max_bytes: int,
    ):
        self._files, self._footers, self._max_bytes = files, footers, max_bytes
        self._columns = [x for x in (columns.image, columns.label) if x is not None]
        # Of each row group: its file, its number there, and the rows up to its end.
        self._places = [(f, g) for f, x in enumerate(footers) for g in range(x.num_row_groups)]
        sizes = [footers[f].row_group(g).num_rows for f, g in self._places]
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self._file_starts = np.cumsum([0, *(x.num_rows for x in footers)], dtype=np.int64)
        self._tables: OrderedDict[int, Future[pa.Table]] = OrderedDict()
        self._num_bytes: dict[int, int] = {}  # of those that were read
        self._total = 0
        self._lock = threading.Lock()

    def where(self, index: int) -> str:
        """The file of a row and its number there, for messages."""
        file = int(np.searchsorted(self._file_starts, index, side="right")) - 1
        return f"{self._files[file].name}, row {index - self._file_starts[file]}"

    def row(self, index: int) -> tuple[pa.Table, int]:
        """The table that a row is in, and its number there.

        Raises:
            OSError, pa.ArrowException: the file is damaged, or gone.
        """
        group = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[group - 1]) if group else 0
        return self._table(group), index - start

    def _table(self, group: int) -> pa.Table:
        with self._lock:
            future = self._tables.get(group)
            is_mine = future is None
            if future is None:
                future = self._tables[group] = Future()
            self._tables.move_to_end(group)
        if is_mine:
            self._read_into(future, group)
        return future.result()

    def _read_into(self, future: Future[pa.Table], group: int) -> None:
        file, number = self._places[group]
        try:
            with pq.ParquetFile(self._files[file], metadata=self._footers[file]) as opened:
                table = opened.read_row_group(number, self._columns, use_threads=False)
        except BaseException as error:  # noqa: BLE001
            with self._lock:
                self._tables.pop(group, None)
            future.set_exception(error)
            return
        future.set_result(table)
        with self._lock:
            self._num_bytes[group] = table.nbytes
            self._total += table.nbytes
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        """Drop tables until the others fit; those in reading are not counted yet."""
        while self._total > self._max_bytes and len(self._num_bytes) > 1:
            oldest = next(x for x in self._tables if x in self._num_bytes)
            del self._tables[oldest]
            self._total -= self._num_bytes.pop(oldest)


class Records(Sequence[Any]):
    """Some rows of parquet files as records: dicts of `image`, `label` and `file_name`."""

    def __init__(self, groups: RowGroups, columns: Columns, indices: Int[np.ndarray, " n"]):
        self._groups, self._columns, self._indices = groups, columns, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: Any) -> dict[str, Any]:  # type: ignore[override]
        """Read a record.

        Raises:
            ValueError: it has no image, or its part of a file is damaged.
        """
        index = int(self._indices[index])
        try:
            table, row = self._groups.row(index)
        except (OSError, pa.ArrowException) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{self._groups.where(index)}: {reason}") from error
        image = table.column(self._columns.image)[row].as_py()
        values = image if isinstance(image, dict) else {"bytes": image}
        if values["bytes"] is None:
            where, path = self._groups.where(index), values.get("path")
            raise ValueError(f"{where}: the image is not in the file, but at {path}")
        name = values.get("path") or self._groups.where(index)
        record = {"image": values["bytes"], "file_name": str(name).encode()}
        if self._columns.label is not None:
            label = table.column(self._columns.label)[row].as_py()
            record["label"] = -1 if label is None else label
        return record
