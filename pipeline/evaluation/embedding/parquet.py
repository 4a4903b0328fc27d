"""Embeddings of a folder of faces as Parquet: one row an image, whatever the folder's size."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import compress
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.evaluation.protocols.pairs_file import identity_of
from pipeline.evaluation.scoring.search import regrouped
from pipeline.files import written_whole

ROWS_OF_GROUP = 8192
BUFFER = 1 << 20


def write_embeddings(
    file: Path, paths: Sequence[str], batches: Iterable[NDArray[np.float32]], facts: dict[str, str]
) -> tuple[int, list[str]]:
    """Write rows ``path``, ``identity`` (the image's folder) and ``embedding`` (float32 numbers) to `file`.

    `batches` yields the embeddings of `paths`, in order; they are written a row group at a time, so memory does not
    grow with their number. A row of NaN stands for an image without an embedding, which is left out. `facts` go to the
    file's metadata. The file appears under its name when it is complete.

    Returns how many numbers an embedding has, and the paths that were left out. Raises ValueError when `batches` does
    not yield exactly one row for each path, or none with numbers, NotWrittenError for a full disk.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    done, width = 0, 0
    left_out: list[str] = []
    with ExitStack() as stack:
        buffered = stack.enter_context(_buffered(file))
        writer: Any = None
        for rows in regrouped(batches, ROWS_OF_GROUP):
            good = np.isfinite(rows).all(axis=1)
            names = paths[done : done + len(rows)]
            left_out += compress(names, ~good)
            if writer is None:
                width = rows.shape[1]
                writer = stack.enter_context(pq.ParquetWriter(buffered, _schema(width, facts), compression="zstd"))
            writer.write_table(_table(list(compress(names, good)), rows[good], writer.schema))
            done += len(rows)
        if done != len(paths) or len(left_out) == len(paths):
            raise ValueError(f"{file}: got {done - len(left_out)} embeddings, wanted {len(paths)}")
    return width, left_out


@contextmanager
def _buffered(file: Path) -> Iterator[BinaryIO]:
    """As `written_whole`, but every write is whole too, which those of a raw file need not be."""
    with written_whole(file) as raw:
        buffered = io.BufferedWriter(cast(Any, raw), BUFFER)
        try:
            yield buffered
            buffered.flush()
        finally:
            with suppress(OSError):  # what a full disk did not take is tried once more
                buffered.detach()


def _schema(width: int, facts: dict[str, str]) -> Any:
    columns = [("path", pa.string()), ("identity", pa.string()), ("embedding", pa.list_(pa.float32(), width))]
    return pa.schema(columns, metadata=facts)


def read_embeddings(file: Path) -> tuple[list[str], NDArray[Any]]:
    """Paths `[N]` and embeddings `[N, W]` float32 of a file, or a folder of part files, that `write_embeddings` wrote.

    Raises ValueError for other columns.
    """
    table = pq.read_table(file, columns=["path", "embedding"]).combine_chunks()
    column = table.column("embedding")
    lists = column.chunk(0) if column.num_chunks else pa.array([], column.type)
    widths = pc.unique(pc.list_value_length(lists)).to_pylist()  # None of a row that is null
    if len(widths) != 1 or not widths[0]:
        found = ", ".join(map(str, widths[:3])) or "no"
        raise ValueError(f"got {len(table)} rows with {found} numbers, wanted the same number in each row")
    numbers = lists.flatten().to_numpy(zero_copy_only=False)
    return table.column("path").to_pylist(), np.asarray(numbers.reshape(len(table), -1), np.float32)


def _table(names: Sequence[str], rows: NDArray[np.float32], schema: Any) -> Any:
    identities = list(map(identity_of, names))
    flat = pa.array(np.ascontiguousarray(rows).reshape(-1))
    embeddings = pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])
    return pa.Table.from_arrays([pa.array(names), pa.array(identities), embeddings], schema=schema)
