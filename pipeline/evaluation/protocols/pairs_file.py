"""The pairs file: one comparison a line, with the people's names where folders do not say who is on an image.

Tab-separated, with the header ``fold  path_a  path_b  same`` and, if wanted, ``person_a  person_b``; ``same`` is 1 or
0. Without the last two an image's identity is the folder that holds it, and a line that contradicts the folders is
refused as a slip. With them pairs are taken as they are listed: published sets do contradict themselves.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pipeline.evaluation.protocols.lines import read_lines
from pipeline.files import write_file

COLUMNS = ("fold", "path_a", "path_b", "same")
PEOPLE = ("person_a", "person_b")


class Row(NamedTuple):
    """One comparison as a protocol file states it; a person who is not named is the folder of the image."""

    fold: str
    path_a: str
    path_b: str
    same: bool
    person_a: str = ""
    person_b: str = ""

    @property
    def people(self) -> tuple[str, str]:
        """Who is on the two images."""
        return self.person_a or identity_of(self.path_a), self.person_b or identity_of(self.path_b)


def identity_of(path: str) -> str:
    """The identity of an image that names no person: the folder that holds it."""
    return PurePosixPath(path).parent.as_posix()


def read_rows(file: Path) -> Iterator[Row]:
    """The comparisons of a pairs file; raises ValueError naming the file and the line that is not one."""
    reader = csv.DictReader(read_lines(file), delimiter="\t", quoting=csv.QUOTE_NONE)
    columns = reader.fieldnames or []
    wanted = COLUMNS + (PEOPLE if set(PEOPLE) & set(columns) else ())
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise ValueError(f"{file}: got no column {missing[0]!r}, wanted {', '.join(wanted)} (tab-separated)")
    for values in reader:
        yield _row([values[name] or "" for name in wanted], wanted, f"{file}, line {reader.line_num}")


def _row(values: list[str], columns: tuple[str, ...], where: str) -> Row:
    for name, value in zip(columns, values, strict=True):
        if not value:
            raise ValueError(f"{where}: got no value for {name}, wanted {len(columns)} tab-separated values")
    fold, a, b, same, *people = values
    if same not in {"0", "1"}:
        raise ValueError(f"{where}: same: got {same!r}, wanted 0 or 1")
    if not people:
        _check_folders(a, b, same, where)
    return Row(fold, a, b, same == "1", *people)


def _check_folders(a: str, b: str, same: str, where: str) -> None:
    if a == b:
        raise ValueError(f"{where}: got {a} twice, wanted two different images")
    if (identity_of(a) == identity_of(b)) != (same == "1"):
        raise ValueError(
            f"{where}: same: got {same} for {a} and {b}, wanted 1 exactly when one folder holds both images,"
            f" or columns {' and '.join(PEOPLE)}"
        )


def write_rows(rows: list[Row], file: Path) -> None:
    """Write a pairs file that `read_rows` reads, whole or not at all; with the people if any row names them.

    Raises NotWrittenError naming the file, for a full disk, and ValueError for a name that the file cannot hold: one
    with a tab or a line break, or one that is not UTF-8.
    """
    named = any(row.person_a or row.person_b for row in rows)
    lines = [_line(*COLUMNS, *(PEOPLE if named else ()))]
    lines += [
        _line(row.fold, row.path_a, row.path_b, str(int(row.same)), *(row.people if named else ())) for row in rows
    ]
    write_file(file, b"".join(lines))


def _line(*values: str) -> bytes:
    for value in values:
        if not set("\t\n\r").isdisjoint(value) or value.encode(errors="ignore").decode() != value:
            raise ValueError(f"pairs: got the name {value!a}, wanted UTF-8 without tabs and line breaks")
    return ("\t".join(values) + "\n").encode()
