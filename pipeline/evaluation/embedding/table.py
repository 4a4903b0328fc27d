"""Embeddings that were made elsewhere, as a source of features: Parquet or npz, keyed by the images' paths."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays import read_npz
from pipeline.evaluation.embedding.source import Table
from pipeline.files import file_sha256

COLUMNS = ("path", "embedding")
ARRAYS = ("paths", "embeddings")


def load_table(file: Path) -> Table:
    """The embeddings of a file: Parquet with the columns `COLUMNS`, or npz with the arrays `ARRAYS`.

    Parquet may also be a folder of part files, as several ranks of ``stages/embed.py`` write it. Paths are those of the
    images below the folder that is evaluated. Raises ValueError naming the file and its fault.
    """
    try:
        digest = _digest(file)
        paths, rows = _read_npz(file) if file.suffix == ".npz" else _read_parquet(file)
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{file}: not a file of embeddings: {str(error).splitlines()[0]}") from None
    if rows.ndim != 2 or len(paths) != len(rows) or rows.dtype.kind != "f":
        raise ValueError(
            f"{file}: got {len(paths)} paths and embeddings {rows.dtype} {rows.shape}, wanted a row of numbers for each"
        )
    if not np.isfinite(rows).all():
        raise ValueError(f"{file}: got embeddings that are not finite, wanted finite ones")
    place = {str(path): i for i, path in enumerate(paths)}
    if len(place) != len(paths):
        raise ValueError(f"{file}: got {len(paths) - len(place)} paths twice, wanted each once")
    return Table(file.stem, digest, rows, place)


def _digest(place: Path) -> str:
    if not place.is_dir():
        return file_sha256(place)
    return hashlib.sha256("\n".join(map(file_sha256, sorted(place.glob("*.parquet")))).encode()).hexdigest()


def _read_npz(file: Path) -> tuple[list[str], NDArray[Any]]:
    arrays = read_npz(file)
    if not set(ARRAYS) <= arrays.keys():
        raise ValueError(f"got arrays {', '.join(arrays)}, wanted {' and '.join(ARRAYS)}")
    return arrays[ARRAYS[0]].tolist(), arrays[ARRAYS[1]]


def _read_parquet(file: Path) -> tuple[list[str], NDArray[Any]]:
    from pipeline.evaluation.embedding.parquet import read_embeddings  # noqa: PLC0415 - the extra may be missing

    return read_embeddings(file)
