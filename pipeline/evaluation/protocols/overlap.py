"""People who are in the training and in the test set: candidates by similarity, and the decision on each.

A decision file is tab-separated with the header ``train_person  test_person  similarity  decision``; a decision is
``same``, ``different`` or, while it is open, empty.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.protocols.lines import read_lines
from pipeline.evaluation.scoring.search import blocks_of, nearest
from pipeline.files import write_file

COLUMNS = ("train_person", "test_person", "similarity", "decision")
SAME, DIFFERENT, OPEN = "same", "different", ""
NEAREST = 5  # training people looked at for each test person: one may be there under several names


@dataclass(frozen=True)
class Candidate:
    """A training and a test person who may be the same: cosine of their centres, and the decision."""

    train: str
    test: str
    similarity: float
    decision: str = OPEN


def find_candidates(
    train_CD: NDArray[np.float32],
    train_names: list[str],
    test_CD: NDArray[np.float32],
    test_names: list[str],
    above: float,
    device: Any = "cpu",
) -> list[Candidate]:
    """Pairs whose centres' cosine exceeds `above`, the highest first.

    Looks at the `NEAREST` training people of each test person. People without a centre (a row of zeros) are never
    candidates.
    """
    train, test = np.flatnonzero(train_CD.any(1)), np.flatnonzero(test_CD.any(1))
    if not len(train) or not len(test):
        return []
    found = nearest(test_CD[test], blocks_of(train_CD[train]), NEAREST, device=device)
    pairs = []
    for probe, place in np.argwhere(found.scores_PK > above):
        row, score = found.index_PK[probe, place], float(found.scores_PK[probe, place])
        pairs.append(Candidate(train_names[train[row]], test_names[test[probe]], round(score, 4)))
    return sorted(pairs, key=lambda pair: (-pair.similarity, pair.test, pair.train))


def merge(found: Iterable[Candidate], decided: Iterable[Candidate]) -> list[Candidate]:
    """The candidates, with the earlier decisions; decisions on other pairs are kept. By falling similarity."""
    earlier = {(pair.train, pair.test): pair for pair in decided if pair.decision != OPEN}
    merged = dict(earlier)
    for pair in found:
        key = (pair.train, pair.test)
        merged[key] = replace(pair, decision=earlier[key].decision) if key in earlier else pair
    return sorted(merged.values(), key=lambda pair: (-pair.similarity, pair.test, pair.train))


def write_decisions(file: Path, pairs: Iterable[Candidate]) -> None:
    """Write a decision file, whole or not at all."""
    lines = ["\t".join(COLUMNS)]
    lines += [f"{pair.train}\t{pair.test}\t{pair.similarity:.4f}\t{pair.decision}" for pair in pairs]
    write_file(file, ("\n".join(lines) + "\n").encode())


def read_decisions(file: Path) -> list[Candidate]:
    """Read a decision file.

    Raises ValueError naming the file, the line, the value got and the value wanted.
    """
    header, *lines = read_lines(file) or [""]
    if tuple(header.split("\t")) != COLUMNS:
        raise ValueError(f"{file}: got the header {header!r}, wanted {', '.join(COLUMNS)} (tab-separated)")
    return [_pair(line, f"{file}, line {number}") for number, line in enumerate(lines, 2) if line.strip()]


def _pair(line: str, where: str) -> Candidate:
    # An editor may strip the tab before an empty decision.
    values = list(map(str.strip, line.split("\t")))
    values += [OPEN] * (len(values) == len(COLUMNS) - 1)
    if len(values) != len(COLUMNS):
        raise ValueError(f"{where}: got {len(values)} values, wanted {len(COLUMNS)}, tab-separated")
    train, test, similarity, decision = values
    if decision not in {SAME, DIFFERENT, OPEN}:
        raise ValueError(f"{where}: decision: got {decision!r}, wanted {SAME}, {DIFFERENT} or nothing")
    try:
        return Candidate(train, test, float(similarity), decision)
    except ValueError:
        raise ValueError(f"{where}: similarity: got {similarity!r}, wanted a number") from None


def excluded_people(file: Path) -> frozenset[str]:
    """The test people that a decision file marks as training people as well. Raises as `read_decisions`."""
    return frozenset(pair.test for pair in read_decisions(file) if pair.decision == SAME)
