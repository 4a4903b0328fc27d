"""The lines of lists in all their forms: path and identity, MXNet's and InsightFace's `.lst`, tables with a header."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.files import write_all, written_whole
from pipeline.shards.format.fields import NO_FIELDS, Fields
from pipeline.shards.format.manifest import ShardError
from pipeline.shards.format.names import BLANKS
from pipeline.shards.sources.columns import Columns, place_of

DELIMITERS = ",;\t"
AT_ONCE = 1 << 10  # rows that are written together


class Row(NamedTuple):
    """One image of a list: the line's number, path and identity as they stand there (one may be empty), and fields."""

    line: int
    image: str
    identity: str
    fields: Fields = NO_FIELDS


def rows_of(lines: Iterable[str], name: str, columns: Columns) -> Iterator[Row]:
    """Rows of a list, in the form that its name and its first line show; lines without any text are skipped.

    Raises:
        ShardError: a table without the columns.
    """
    lines = iter(lines)
    first = next(lines, "")
    whole = chain([first], lines)
    header = first.split("\t")
    if name.lower().endswith(".csv") or None not in [place_of(column, header) for column in columns]:
        return _table(whole, name, columns)
    return _packing_list(whole) if name.lower().endswith(".lst") else _plain(whole)


def _plain(lines: Iterable[str]) -> Iterator[Row]:
    """Path and identity with a tab, or else the last space, between; comments begin with `#`."""
    for number, line in enumerate(lines, start=1):
        text = line.rstrip("\r\n")
        if text.strip() and not text.startswith("#"):
            image, _, identity = text.rstrip(BLANKS).rpartition("\t" if "\t" in text else " ")
            yield Row(number, image, identity + text[len(text.rstrip(BLANKS)) :])


def _packing_list(lines: Iterable[str]) -> Iterator[Row]:
    """What records are packed from, columns with tabs between.

    MXNet's im2rec writes number, labels, path; InsightFace's face2rec2 reads whether it is aligned, path, label, and
    perhaps a box and five landmarks, first their x and then their y.
    """
    for number, line in enumerate(lines, start=1):
        columns = line.rstrip("\r\n").split("\t")
        if len(columns) < 3:
            yield from (row._replace(line=number) for row in _plain([line]))
        elif _number(columns[-1]) is None:
            more = [_number(label) for label in columns[2:-1]]
            yield Row(number, columns[-1], _whole(columns[1]), {"labels": more} if more else NO_FIELDS)
        else:
            yield Row(number, columns[1], _whole(columns[2]), _face_fields(columns[3:]))


def _face_fields(columns: list[str]) -> Fields:
    """Box (left, top, right, bottom) and landmarks ([5, 2] x and y) that stand behind the label."""
    numbers = [_number(column) for column in columns]
    fields: dict[str, Any] = {}
    if len(numbers) >= 4:
        fields["box"] = numbers[:4]
    if len(numbers) >= 14:
        fields["landmarks"] = [list(point) for point in zip(numbers[4:9], numbers[9:14], strict=True)]
    return fields


def _table(lines: Iterable[str], name: str, columns: Columns) -> Iterator[Row]:
    """A table with a header; all columns but path and identity are fields."""
    lines = iter(lines)
    first = next(lines, "")
    delimiter = max(DELIMITERS, key=first.count)
    header = [column.strip() for column in next(csv.reader([first], delimiter=delimiter), [])]
    image, label = (place_of(column, header) for column in columns)
    if image is None or label is None:
        missing = f"{columns.image} and {columns.label} (--image-column, --label-column)"
        raise ShardError(f"{name}: got columns {', '.join(header)}, wanted {missing}")
    # If it were not strict, a quotation mark that opens a cell by mistake would swallow all lines up to the next one.
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    for cells in _rows_of(reader, name):
        if any(cells):
            named = dict(zip(header, cells, strict=False))
            path, identity = named.pop(header[image], ""), named.pop(header[label], "")
            fields = {column: of_cell(cell) for column, cell in named.items() if cell}
            yield Row(reader.line_num + 1, path, identity, fields)


def _rows_of(reader: Any, name: str) -> Iterator[list[str]]:
    """The rows behind the header.

    Raises:
        ShardError: one cannot be read; names the line in which it begins.
    """
    line = 2
    try:
        for row in reader:
            yield row
            line = reader.line_num + 2
    except csv.Error as error:
        raise ShardError(f"{name}:{line}: not a table ({error})") from error


def of_cell(cell: str) -> Any:
    """A cell as JSON if it is that: numbers, and lists such as landmarks; else its text."""
    try:
        return json.loads(cell)
    except ValueError:
        return cell


def to_cell(value: Any) -> str:
    """The cell that is read as a value."""
    return value if isinstance(value, str) and of_cell(value) == value else json.dumps(value)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], delimiter: str = ",") -> None:
    """Write a table with a header, whole or not at all; a few rows are in memory at a time.

    Raises:
        NotWrittenError: the disk is full or read-only, or the path cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    rows = iter(rows)
    with written_whole(path) as file:
        while text.tell():
            write_all(file, text.getvalue().encode("utf-8", "surrogateescape"))
            text.seek(0)
            text.truncate()
            writer.writerows(islice(rows, AT_ONCE))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _whole(text: str) -> str:
    """A label without the decimals of a whole number: im2rec writes 3.000000."""
    number = _number(text) if "." in text else None
    return str(int(number)) if number is not None and number.is_integer() else text
