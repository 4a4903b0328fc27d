"""Parquet files with a column of images and one of labels, as Hugging Face `datasets` lays them out.

The image column holds the encoded bytes, alone or as the field `bytes` of a struct; the label column holds numbers
(with names in the schema's metadata, if it was a `ClassLabel`) or strings. Needs pyarrow, which the extra `parquet`
installs.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cluster.versions import how_to_install
from pipeline.shards.errors import SetAsideError, ShardError
from pipeline.shards.sources import OneByOne, SetAside
from pipeline.shards.sources.folder import printable
from pipeline.shards.sources.list_file import number_names


class Columns(NamedTuple):
    """Names of the columns that are read."""

    image: str = "image"
    label: str = "label"


HUGGING_FACE = Columns()


@dataclass(frozen=True)
class ParquetSource(OneByOne):
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
    image_column: str
    kind: str = "parquet"
    decoded: dict[int, list[Any]] = field(default_factory=dict)  # the row group at hand

    def digest(self) -> str:
        """SHA-256 of the image column's name, identities, labels, rows and row groups."""
        digest = hashlib.sha256("\n".join([self.image_column, *self.identities]).encode())
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
                table = opened.read_row_group(number, [self.image_column], use_threads=False)
                images: list[Any] = table[self.image_column].to_pylist()
        except errors as error:
            raise ShardError(f"{self.files[file]}: row group {number}: {_line(error)}") from error
        return images


def open_parquet(path: Path, columns: Columns = HUGGING_FACE) -> ParquetSource:
    """List a Parquet file, or the `*.parquet` files of a folder in the order of their names.

    Raises:
        ShardError: pyarrow is not installed, a file is damaged or has other columns, or no row has a label.
    """
    files = [path] if path.is_file() else sorted(path.glob("*.parquet"))
    names, labels, groups = _read_all(files, columns.label, columns.image)
    good = np.flatnonzero(labels >= 0)
    if not len(good):
        raise ShardError(f"{path}: got no row with a label, wanted columns {columns.image} and {columns.label}")
    reason = f"{columns.label}: got none, wanted a name or a number of at least 0"
    set_aside = [SetAside(f"{path.name}:{row}", reason) for row in np.flatnonzero(labels < 0).tolist()]
    names = names or _class_names(files[0], columns.label)
    distinct, dense = np.unique(labels[good], return_inverse=True)
    if names and distinct[-1] < len(names):
        identities = [printable(names[value], path) for value in distinct.tolist()]
    else:
        identities = number_names(distinct)
    return ParquetSource(files, identities, dense.astype(np.uint32), set_aside, good, groups, columns.image)


def _read_all(files: Sequence[Path], label: str, image: str) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """Sorted names (none when labels are numbers), [rows] labels (-1 where there is none), [row groups, 3] groups.

    Strings become numbers file by file, since ten million Python objects would take a gigabyte.
    """
    numbers_of: dict[str, int] = {}
    pieces: list[NDArray[np.int64]] = []
    groups: list[tuple[int, int, int]] = []
    rows, wanted = 0, None
    for number, file in enumerate(files):
        column, sizes = _read_column(file, label, image)
        wanted = wanted or column.type
        if column.type != wanted:
            raise ShardError(f"{file}: {label}: got {column.type}, wanted {wanted} as in {files[0].name}")
        starts = (rows + np.cumsum([0, *sizes])).tolist()
        groups += [(number, group, start) for group, start in enumerate(starts[:-1])]
        rows = starts[-1]
        pieces.append(_numbers(column, numbers_of, f"{file}: {label}"))
    names, labels = sorted(numbers_of), np.concatenate(pieces)
    if names:
        rank = np.full(len(names) + 1, -1, np.int64)  # -1 is the last place, and stays
        rank[[numbers_of[name] for name in names]] = np.arange(len(names))
        labels = rank[labels]
    return names, labels, np.array(groups, np.int64).reshape(-1, 3)


def _read_column(file: Path, label: str, image: str) -> tuple[Any, list[int]]:
    """The label column of a file that has both, and the rows of each row group."""
    parquet, errors = _library()
    try:
        with parquet.ParquetFile(file) as opened:
            there = opened.schema_arrow.names
            if not {image, label} <= set(there):
                raise ShardError(f"{file}: got columns {', '.join(there)}, wanted {image} and {label}")
            sizes = [opened.metadata.row_group(i).num_rows for i in range(opened.num_row_groups)]
            return opened.read([label], use_threads=False)[label], sizes
    except errors as error:
        raise ShardError(f"{file}: not a sound Parquet file: {_line(error)}") from error


def _numbers(column: Any, numbers_of: dict[str, int], where: str) -> NDArray[np.int64]:
    """[rows] a column of numbers, or of strings by `numbers_of`, to which new ones are added; -1 for null."""
    _, errors = _library()
    try:
        if "string" not in str(column.type):
            values: NDArray[np.int64] = column.cast("int64").fill_null(-1).to_numpy()
            return values
        encoded = column.cast("string").combine_chunks().dictionary_encode()
    except errors as error:
        raise ShardError(f"{where}: got {column.type}, wanted whole numbers or strings ({_line(error)})") from error
    names = encoded.dictionary.to_pylist()
    numbers = np.array([*(numbers_of.setdefault(name, len(numbers_of)) for name in names), -1])
    return numbers[encoded.indices.fill_null(-1).to_numpy()]


def _class_names(file: Path, label: str) -> list[str]:
    """Names of a Hugging Face `ClassLabel` column, from the schema's metadata."""
    parquet, _ = _library()
    with parquet.ParquetFile(file) as opened:
        metadata = opened.schema_arrow.metadata or {}
    try:
        return [str(name) for name in json.loads(metadata[b"huggingface"])["info"]["features"][label]["names"]]
    except (KeyError, TypeError, ValueError):
        return []


def _library() -> tuple[Any, tuple[type[Exception], ...]]:
    """pyarrow's Parquet module and what it raises; imported here since only this source needs it."""
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise ShardError(f"Parquet needs pyarrow: {how_to_install('parquet')} ({error})") from error
    return parquet, (arrow.ArrowException, OSError)


def _line(error: Exception) -> str:
    return str(error).splitlines()[0]
