"""The rows of Parquet and Arrow files, a few in memory at a time: all that is read of such files but the labels.

Some tools write a whole file as one row group. Decoded whole, as pyarrow does it, it takes as much memory as the file
decoded, in every worker; here it takes about a hundred rows.
"""

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.versions import how_to_install
from pipeline.shards.format.manifest import ShardError

AT_ONCE = 64  # rows
READ_BYTES = 1 << 20  # of a column at a time


class Rows:
    """Rows of several files by their number over all of them, as dictionaries of some columns.

    Reading is fast in the order of the rows: for one that lies before those in memory, its row group is read again from
    the start.

    Args:
        files: the files.
        groups: [row groups, 3] file, group in the file, first row over all files.
        columns: of each file, those to read.
    """

    def __init__(self, files: Sequence[Path], groups: NDArray[np.int64], columns: Sequence[Sequence[str]]) -> None:
        self._files, self._groups, self._columns = files, groups, columns
        self._group, self._first = -1, 0
        self._batches: Iterator[Any] = iter(())
        self._held: list[dict[str, Any]] = []

    def file_of(self, rows: Any) -> Any:
        """The number of the file of a row, or of each of an array of rows."""
        return self._groups[self._group_of(rows), 0]

    def __getitem__(self, row: int) -> dict[str, Any]:
        """The columns of a row.

        Raises:
            ShardError: its row group is damaged.
        """
        if not self._first <= row < self._first + len(self._held):
            self._move_to(row)
        return self._held[row - self._first]

    def _group_of(self, rows: Any) -> Any:
        return np.searchsorted(self._groups[:, 2], rows, side="right") - 1

    def _move_to(self, row: int) -> None:
        group = int(self._group_of(row))
        file, number, first = self._groups[group].tolist()
        if group != self._group or row < self._first:
            self._batches = _batches(self._files[file], number, self._columns[file])
            self._group, self._first, self._held = group, first, []
        end = self._first + len(self._held)
        try:
            while row >= end:
                batch = next(self._batches)
                self._first, end = end, end + batch.num_rows
            self._held = batch.to_pylist()
        except library()[1] as error:
            self._group = -1
            raise ShardError(f"{self._files[file]}: row group {number}: {line_of(error)}") from error


def _batches(file: Path, group: int, columns: Sequence[str]) -> Iterator[Any]:
    """Some columns of a row group (or record batch) as record batches of at most `AT_ONCE` rows."""
    if file.suffix == ".arrow":
        whole = saved_table(file).select(columns).to_batches()[group]
        for first in range(0, whole.num_rows, AT_ONCE):
            yield whole.slice(first, AT_ONCE)
        return
    parquet, _ = library()
    # Without `pre_buffer` the pages of a column are read as they are decoded. Threads would not survive the fork of the
    # workers.
    with parquet.ParquetFile(file, buffer_size=READ_BYTES, pre_buffer=False) as opened:
        yield from opened.iter_batches(AT_ONCE, row_groups=[group], columns=columns, use_threads=False)


def schema_of(file: Path) -> Any:
    """The columns of a file, and its metadata."""
    parquet, _ = library()
    if file.suffix == ".arrow":
        return saved_table(file).schema
    with parquet.ParquetFile(file) as opened:
        return opened.schema_arrow


def saved_table(file: Path) -> Any:
    """The table that `save_to_disk` wrote: a stream of record batches, which is mapped and not read."""
    arrow = import_module("pyarrow")
    return import_module("pyarrow.ipc").open_stream(arrow.memory_map(str(file))).read_all()


def library() -> tuple[Any, tuple[type[Exception], ...]]:
    """pyarrow's Parquet module and what it raises; imported here since only this kind of source needs it."""
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise ShardError(f"Parquet needs pyarrow: {how_to_install('parquet')} ({error})") from error
    return parquet, (arrow.ArrowException, OSError)


def line_of(error: Exception) -> str:
    """The first line of what pyarrow says."""
    return str(error).splitlines()[0]
