"""The page to decide on: candidate pairs of a training and a test person, side by side, and a file to save."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.evaluation.embedding.people import People
from pipeline.evaluation.protocols.overlap import COLUMNS, Candidate
from pipeline.evaluation.reports.hardest import uri_of
from pipeline.evaluation.reports.pages import render
from pipeline.files import write_file

PICTURES = 4  # of each person


@dataclass(frozen=True)
class Row:
    """A candidate pair with the pictures of both, as data URIs."""

    pair: Candidate
    train: list[str]
    test: list[str]


def write_page(out: Path, pairs: Sequence[Candidate], train: People, test: People, facts: dict[str, str]) -> None:
    """Write the page to `out`: it holds its pictures and its style, and saves ``decisions.tsv`` by itself.

    People that a set does not have (any more) are shown without pictures.
    """
    in_train, in_test = _places(train), _places(test)
    rows = []
    for pair in pairs:
        pictures = _pictures(train, in_train.get(pair.train)), _pictures(test, in_test.get(pair.test))
        rows.append(Row(pair, *pictures))
    page = render("overlap.html", rows=rows, facts=facts, columns=COLUMNS)
    write_file(out, page.encode())


def _places(people: People) -> dict[str, int]:
    return {name: place for place, name in enumerate(people.names)}


def _pictures(people: People, person: int | None) -> list[str]:
    return [] if person is None else [uri_of(image.tobytes()) for image in people.of(person, PICTURES)]
