"""Embeddings of a folder of faces as Parquet: one row an image, whatever the folder's size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.evaluation.scoring.search import regrouped

ROWS_OF_GROUP = 8192


def write_embeddings(
    file: Path, paths: Sequence[str], batches: Iterable[NDArray[np.float32]], width: int, facts: dict[str, str]
) -> None:
    """Write rows ``path``, ``identity`` (the image's folder) and ``embedding`` (`width` float32 numbers) to `file`.

    `batches` yields the embeddings of `paths`, in order; they are written a row group at a time, so memory does not
    grow with their number. `facts` go to the file's metadata. The file appears under its name when it is complete.
    Raises ValueError when `batches` does not yield exactly one row for each path.
    """
    schema = pa.schema(
        [("path", pa.string()), ("identity", pa.string()), ("embedding", pa.list_(pa.float32(), width))], metadata=facts
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(file.name + ".part")
    done = 0
    with pq.ParquetWriter(aside, schema, compression="zstd") as writer:
        for rows in regrouped(batches, ROWS_OF_GROUP):
            names = paths[done : done + len(rows)]
            writer.write_table(_table(names, rows, schema))
            done += len(rows)
    if done != len(paths):
        raise ValueError(f"{file}: got {done} embeddings, wanted {len(paths)}")
    aside.replace(file)


def _table(names: Sequence[str], rows: NDArray[np.float32], schema: Any) -> Any:
    identities = [PurePosixPath(name).parent.as_posix() for name in names]
    flat = pa.array(np.ascontiguousarray(rows).reshape(-1))
    embeddings = pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])
    return pa.Table.from_arrays([pa.array(names), pa.array(identities), embeddings], schema=schema)
