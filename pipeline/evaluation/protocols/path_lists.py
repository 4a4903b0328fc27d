"""Lists of paths, as CFP, AgeDB, CALFW and CPLFW are handed around: two images and whether they show one person.

- One pair a line: ``first second 1``, or 0 (AgeDB-30, CFP-FP).
- One image a line, two for each pair: ``Name_0001.jpg 3`` (CALFW and CPLFW). 0 is a different pair, and any other
  number a same one: CALFW counts its folds there, but of the same pairs only.

Fields are separated by tabs, if a line has any, or by blanks. Zheng, Deng, Hu, "Cross-Age LFW", arXiv 1708.08197, 2017;
Zheng, Deng, "Cross-Pose LFW", 2018; Moschoglou et al., "AgeDB", CVPRW 2017.
"""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from pipeline.evaluation.protocols.folds import folds_of, people_by_flags
from pipeline.evaluation.protocols.lines import read_lines
from pipeline.evaluation.protocols.pairs_file import Row


class Line(NamedTuple):
    """The fields of a line that is not empty, and where it stands."""

    fields: list[str]
    where: str


def list_rows(file: Path, person: re.Pattern[str] | None = None) -> list[Row]:
    """The pairs of a list.

    Args:
        person: its first group is the person's name in a path; without it the "same" flags say who is one person.

    Raises ValueError naming the line that is no pair, or the path that `person` does not find a name in.
    """
    lines = _lines(file)
    pairs = _by_image(lines) if lines and len(lines[0].fields) == 2 else _by_pair(lines)
    paths = list(chain.from_iterable((a, b) for a, b, _ in pairs))
    same = [flag for _, _, flag in pairs]
    people = people_by_flags(paths, same) if person is None else {path: _name(path, person, file) for path in paths}
    rows = []
    for fold, (a, b, flag) in zip(folds_of(same), pairs, strict=True):
        rows.append(Row(str(fold), a, b, flag, people[a], people[b]))
    return rows


def fields_of(line: str) -> list[str]:
    """The fields of a line: between tabs if it has any, else between blanks."""
    return [field.strip() for field in line.split("\t" if "\t" in line else None)]


def _lines(file: Path) -> list[Line]:
    numbered = enumerate(read_lines(file), start=1)
    return [Line(fields_of(line), f"{file}, line {number}") for number, line in numbered if line.strip()]


def _by_pair(lines: list[Line]) -> list[tuple[str, str, bool]]:
    pairs = []
    for fields, where in lines:
        if len(fields) != 3 or fields[2] not in {"0", "1"}:
            raise ValueError(
                f"{where}: got {' '.join(fields)!r}, wanted two paths and 0 or 1 (tabs if paths have blanks)"
            )
        pairs.append((fields[0], fields[1], fields[2] == "1"))
    return pairs


def _by_image(lines: list[Line]) -> list[tuple[str, str, bool]]:
    for fields, where in lines:
        if len(fields) != 2 or not fields[1].isdecimal():
            raise ValueError(
                f"{where}: got {' '.join(fields)!r}, wanted a path and a number (tabs if paths have blanks)"
            )
    if len(lines) % 2:
        raise ValueError(f"{lines[-1].where}: got {len(lines)} images, wanted two for each pair")
    pairs = []
    for (first, _), (second, where) in zip(lines[::2], lines[1::2], strict=True):
        if first[1] != second[1]:
            raise ValueError(f"{where}: got {second[1]} after {first[1]}, wanted one number for both images of a pair")
        pairs.append((first[0], second[0], int(first[1]) > 0))
    return pairs


def _name(path: str, person: re.Pattern[str], file: Path) -> str:
    found = person.search(path)
    if found is None or not found[1]:
        raise ValueError(f"{file}: person: got {path}, wanted a name in it where {person.pattern} has its first group")
    return found[1]
