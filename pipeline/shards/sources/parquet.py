"""Parquet or Arrow files with a column of images and one of labels, as Hugging Face `datasets` lays them out.

The image column holds the encoded bytes, alone or as the field `bytes` of a struct, or in a struct the `path` of a file
only; the label column holds numbers (with names in the schema's metadata, if it was a `ClassLabel`) or strings. Needs
pyarrow, which the extra `parquet` installs.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.shards.format.manifest import ShardError
from pipeline.shards.format.names import UNUSABLE, usable_name, warn_respelled
from pipeline.shards.format.rejected import SetAside
from pipeline.shards.images import SetAsideError, UnreadableError
from pipeline.shards.sources import Read, changed_at
from pipeline.shards.sources.columns import HUGGING_FACE, Columns
from pipeline.shards.sources.labels import number_names
from pipeline.shards.sources.parquet_rows import Rows, library, line_of, saved_table, schema_of
from pipeline.shards.sources.splits import EVERYTHING, Choice, choose


@dataclass(frozen=True)
class ParquetSource:
    """Images of Parquet files, in the order of their rows; columns besides image and label are fields of the sample."""

    files: Sequence[Path]
    identities: Sequence[str]
    labels: NDArray[np.uint32]
    set_aside: Sequence[SetAside]
    rows: NDArray[np.int64]  # [samples] number of each sample's row over all files
    groups: NDArray[np.int64]  # [row groups, 3] file, group in the file, first row over all files
    image_column: str
    table: Rows
    kind: str = "parquet"
    sequential: bool = True

    def digest(self) -> str:
        """SHA-256 of the image column's name, identities, labels, rows and row groups."""
        digest = hashlib.sha256("\n".join([self.image_column, *self.identities]).encode())
        for column in (self.labels, self.rows, self.groups):
            digest.update(column.tobytes())
        return digest.hexdigest()

    def key(self, sample: int) -> str:
        """`identity/file:row`, the row counted over all files."""
        row = self.rows[sample]
        return f"{self.identities[self.labels[sample]]}/{self.files[self.table.file_of(row)].name}:{row}"

    def modified(self, samples: NDArray[np.int64]) -> NDArray[np.float64]:
        """[samples] when the file of each was last changed."""
        return np.array([changed_at(file) for file in self.files])[self.table.file_of(self.rows[samples])]

    def read(self, sample: int) -> bytes:
        """The encoded image; its row's group is decoded from the start unless the last row used lies before it."""
        image = self._read(sample).image
        if isinstance(image, SetAsideError):
            raise image
        return image

    def read_many(self, samples: NDArray[np.int64]) -> Iterator[Read]:
        """Samples, each from its row."""
        return map(self._read, samples.tolist())

    def _read(self, sample: int) -> Read:
        row = self.rows[sample]
        fields = dict(self.table[row])
        image = fields.pop(self.image_column)
        if isinstance(image, dict):
            path, image = image.get("path"), image.get("bytes")
            if path:
                fields.setdefault("path", path)
            if image is None and path:
                image = self._read_beside(row, path)
        if not isinstance(image, (bytes, SetAsideError)):
            image = SetAsideError("no image bytes in the row")
        return Read(self.key(sample), image, fields)

    def _read_beside(self, row: int, path: str) -> bytes | SetAsideError:
        """A file that a row names instead of holding its bytes: absolute, or beside the row's file."""
        try:
            return (self.files[self.table.file_of(row)].parent / path).read_bytes()
        except OSError as error:
            return UnreadableError(f"no image bytes in the row, and its file: {error.strerror}")


def open_parquet(path: Path, columns: Columns = HUGGING_FACE, choice: Choice = EVERYTHING) -> ParquetSource:
    """List one file, or those of a folder in the order of their names: of a repository at the Hub, or a saved dataset.

    Raises:
        ShardError: pyarrow is not installed, a file is damaged or has other columns, no row has a label, or there are
            several splits and none is chosen.
    """
    files = _files(path, choice)
    names, labels, groups = _read_all(files, columns.label, columns.image)
    names = names or _class_names(files, columns.label)
    people, spelled = _people(path, names, labels) if names else ([], labels)
    good = np.flatnonzero(spelled >= 0)
    if not len(good):
        raise ShardError(f"{path}: got no row with a label, wanted columns {columns.image} and {columns.label}")
    set_aside = [_unlabelled(path, columns.label, row, labels, names) for row in np.flatnonzero(spelled < 0).tolist()]
    distinct, dense = np.unique(spelled[good], return_inverse=True)
    identities = [people[value] for value in distinct.tolist()] if names else number_names(distinct)
    table = Rows(files, groups, [_read_columns(file, columns) for file in files])
    return ParquetSource(files, identities, dense.astype(np.uint32), set_aside, good, groups, columns.image, table)


def _read_columns(file: Path, columns: Columns) -> list[str]:
    """The image column of a file, and those that fit a sample's JSON, without the label."""
    others = (column for column in schema_of(file) if column.name not in columns and _fits_json(column.type))
    return [columns.image, *(column.name for column in others)]


def _fits_json(kind: Any) -> bool:
    """Whether values of an Arrow type are numbers, strings, or lists and structures of such."""
    types = import_module("pyarrow.types")
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _fits_json(kind.value_type)
    if types.is_struct(kind):
        return all(_fits_json(inner.type) for inner in kind)
    plain = (types.is_integer, types.is_floating, types.is_boolean, types.is_string, types.is_large_string)
    return any(is_kind(kind) for is_kind in plain)


def _people(path: Path, names: Sequence[str], labels: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64]]:
    """Distinct names in their spelling in sets, and [rows] the number of each row's; -1 for a label that names none."""
    spelled = list(map(usable_name, names))
    people = list(dict.fromkeys(name for name in spelled if name is not None))
    number_of: dict[str | None, int] = {None: -1, **{name: number for number, name in enumerate(people)}}
    warn_respelled(path, sum(new not in {None, old} for new, old in zip(spelled, names, strict=True)))
    numbers = np.array([number_of[name] for name in spelled])
    is_known = (labels >= 0) & (labels < len(names))
    return people, np.where(is_known, numbers[labels * is_known], -1)


def _unlabelled(path: Path, column: str, row: int, labels: NDArray[np.int64], names: Sequence[str]) -> SetAside:
    """A row whose label is none, outside the names of the file, or a name that cannot be used."""
    label = int(labels[row])
    if label < 0:
        reason = "got none, wanted a name or a number of at least 0"
    elif label < len(names):
        reason = f"got {names[label]!r}, {UNUSABLE}"
    else:
        reason = f"got {label}, wanted less than {len(names)}, the class names"
    return SetAside(f"{path.name}:{row}", f"{column}: {reason}")


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
        if column.type != wanted and not _are_integers(column.type, wanted):
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
    parquet, errors = library()
    try:
        there = schema_of(file).names
        if not {image, label} <= set(there):
            raise ShardError(f"{file}: got columns {', '.join(there)}, wanted {image} and {label}")
        if file.suffix == ".arrow":
            table = saved_table(file)
            return table[label], [batch.num_rows for batch in table.to_batches()]
        with parquet.ParquetFile(file) as opened:
            sizes = [opened.metadata.row_group(i).num_rows for i in range(opened.num_row_groups)]
            return opened.read([label], use_threads=False)[label], sizes
    except errors as error:
        raise ShardError(f"{file}: not a sound Parquet file: {line_of(error)}") from error


def _files(path: Path, choice: Choice) -> list[Path]:
    """The Parquet or Arrow files of a folder that are chosen; the first of these layouts that is there counts."""
    if path.is_file() and path.name != "dataset_dict.json":
        return [path.parent / name for name in choose([path.name], choice, str(path))]
    path = path if path.is_dir() else path.parent
    for pattern in ("*.parquet", "data/*.parquet", "*.arrow", "*/*.arrow"):
        if found := sorted(file.relative_to(path).as_posix() for file in path.glob(pattern)):
            return [path / name for name in choose(found, choice, str(path))]
    raise ShardError(f"{path}: got no Parquet or Arrow file")


def _are_integers(*types: Any) -> bool:
    """Whether all of some Arrow types are whole numbers, of whatever width."""
    return all(str(kind).removeprefix("u").startswith("int") for kind in types)


def _numbers(column: Any, numbers_of: dict[str, int], where: str) -> NDArray[np.int64]:
    """[rows] a column of numbers, or of strings by `numbers_of`, to which new ones are added; -1 for null."""
    _, errors = library()
    try:
        if "string" not in str(column.type):
            values: NDArray[np.int64] = column.cast("int64").fill_null(-1).to_numpy()
            return values
        encoded = column.cast("string").combine_chunks().dictionary_encode()
    except errors as error:
        raise ShardError(f"{where}: got {column.type}, wanted whole numbers or strings ({line_of(error)})") from error
    names = encoded.dictionary.to_pylist()
    numbers = [numbers_of.setdefault(name, len(numbers_of)) for name in names]
    return np.array([*numbers, -1])[encoded.indices.fill_null(-1).to_numpy()]


def _class_names(files: Sequence[Path], label: str) -> list[str]:
    """Names of a Hugging Face `ClassLabel` column, from the schema's metadata; they must be the same in all files."""
    names: list[str] = []
    for file in files:
        try:
            features = json.loads((schema_of(file).metadata or {})[b"huggingface"])["info"]["features"]
            own = list(map(str, features[label]["names"]))
        except (KeyError, TypeError, ValueError):
            own = []
        names = names or own
        if own != names:
            raise ShardError(f"{file}: {label}: got other class names, wanted those of {files[0].name}")
    return names
