"""Parquet files with a column of images and one of labels, as Hugging Face `datasets` lays them out.

`image` holds the encoded bytes, alone or as the field `bytes` of a struct; `label` holds numbers (with names in the
schema's metadata, if it was a `ClassLabel`) or strings. Needs pyarrow: `pip install 'spherescale[parquet]'`.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.shards.errors import SetAsideError, ShardError
from pipeline.shards.sources import SetAside
from pipeline.shards.sources.folder import printable
from pipeline.shards.sources.list_file import number_names

IMAGE, LABEL = "image", "label"


@dataclass(frozen=True)
class ParquetSource:
    """Images of Parquet files, in the order of their rows.

    A row group is decoded whole, so reading is quick in the order of the rows and hopeless in any other: such a
    source is written to tars in its own order first, and those are shuffled.
    """

    files: Sequence[Path]
    identities: Sequence[str]
    labels: NDArray[np.uint32]
    set_aside: Sequence[SetAside]
    rows: NDArray[np.int64]  # [samples] number of each sample's row over all files
    groups: NDArray[np.int64]  # [row groups, 3] file, group in the file, first row over all files
    kind: str = "parquet"
    decoded: dict[int, list[Any]] = field(default_factory=dict)  # the row group at hand

    def digest(self) -> str:
        """SHA-256 of identities, labels, rows and row groups."""
        digest = hashlib.sha256("\n".join(self.identities).encode())
        for column in (self.labels, self.rows, self.groups):
            digest.update(column.tobytes())
        return digest.hexdigest()

    def key(self, sample: int) -> str:
        """`identity/file:row`, the row counted over all files."""
        file = self.files[self.groups[self._group(sample), 0]]
        return f"{self.identities[self.labels[sample]]}/{file.name}:{self.rows[sample]}"

    def read(self, sample: int) -> bytes:
        """The encoded image; the whole row group is decoded when it is not the one at hand."""
        group = self._group(sample)
        if group not in self.decoded:
            self.decoded.clear()
            self.decoded[group] = self._decode(group)
        image = self.decoded[group][self.rows[sample] - self.groups[group, 2]]
        if isinstance(image, dict):
            image = image.get("bytes")
        if not isinstance(image, bytes):
            raise SetAsideError("no image bytes in the row")
        return image

    def _group(self, sample: int) -> int:
        return int(np.searchsorted(self.groups[:, 2], self.rows[sample], side="right")) - 1

    def _decode(self, group: int) -> list[Any]:
        file, number, _ = self.groups[group].tolist()
        parquet, errors = _library()
        try:
            with parquet.ParquetFile(self.files[file]) as opened:
                # Threads of its own would not survive the fork of the workers.
                images: list[Any] = opened.read_row_group(number, [IMAGE], use_threads=False)[IMAGE].to_pylist()
        except errors as error:
            raise ShardError(f"{self.files[file]}: row group {number}: {_line(error)}") from error
        return images


def open_parquet(path: Path) -> ParquetSource:
    """List a Parquet file, or the `*.parquet` files of a folder in the order of their names.

    Raises:
        ShardError: pyarrow is not installed, a file is damaged or has other columns, or no row has a label.
    """
    files = [path] if path.is_file() else sorted(path.glob("*.parquet"))
    labels: list[Any] = []
    groups: list[tuple[int, int, int]] = []
    for number, file in enumerate(files):
        values, sizes = _read_labels(file)
        starts = np.cumsum([len(labels), *sizes[:-1]]).tolist()
        groups += [(number, group, start) for group, start in enumerate(starts)]
        labels += values
    good = [row for row, label in enumerate(labels) if isinstance(label, str) or (label is not None and label >= 0)]
    if not good:
        raise ShardError(f"{path}: got no row with a label, wanted columns {IMAGE} and {LABEL}")
    distinct, dense = np.unique(np.array([labels[row] for row in good]), return_inverse=True)
    names = _class_names(files[0])
    if distinct.dtype.kind == "U":
        identities = [printable(name, path) for name in distinct.tolist()]
    elif names and distinct[-1] < len(names):
        identities = [printable(names[value], path) for value in distinct.tolist()]
    else:
        identities = number_names(distinct)
    bad = sorted(set(range(len(labels))) - set(good))
    set_aside = [SetAside(f"{path.name}:{row}", f"label: got {labels[row]}, wanted a name or number") for row in bad]
    table = np.array(groups, np.int64).reshape(-1, 3)
    return ParquetSource(files, identities, dense.astype(np.uint32), set_aside, np.array(good, np.int64), table)


def _read_labels(file: Path) -> tuple[list[Any], list[int]]:
    """Labels of a file's rows, and the rows of each row group."""
    parquet, errors = _library()
    try:
        with parquet.ParquetFile(file) as opened:
            columns = opened.schema_arrow.names
            if not {IMAGE, LABEL} <= set(columns):
                raise ShardError(f"{file}: got columns {', '.join(columns)}, wanted {IMAGE} and {LABEL}")
            sizes = [opened.metadata.row_group(i).num_rows for i in range(opened.num_row_groups)]
            labels: list[Any] = opened.read([LABEL], use_threads=False)[LABEL].to_pylist()
    except errors as error:
        raise ShardError(f"{file}: not a sound Parquet file: {_line(error)}") from error
    return labels, sizes


def _class_names(file: Path) -> list[str]:
    """Names of a Hugging Face `ClassLabel` column, from the schema's metadata."""
    parquet, _ = _library()
    with parquet.ParquetFile(file) as opened:
        metadata = opened.schema_arrow.metadata or {}
    try:
        return [str(name) for name in json.loads(metadata[b"huggingface"])["info"]["features"][LABEL]["names"]]
    except (KeyError, TypeError, ValueError):
        return []


def _library() -> tuple[Any, tuple[type[Exception], ...]]:
    """pyarrow's Parquet module and what it raises; imported here since only this source needs it."""
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise ShardError(f"Parquet needs pyarrow: pip install 'spherescale[parquet]' ({error})") from error
    return parquet, (arrow.ArrowException, OSError)


def _line(error: Exception) -> str:
    return str(error).splitlines()[0]
