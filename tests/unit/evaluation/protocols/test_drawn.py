"""Pairs drawn from identity folders: right, distinct, and no person in two folds."""

import random
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from pipeline.evaluation.protocols.drawn import folder_rows, lfw_like
from pipeline.evaluation.protocols.pairs import assemble, frames_of, read_pairs
from pipeline.evaluation.protocols.pairs_file import write_rows


@pytest.fixture
def people(tmp_path: Path) -> Path:
    for person in range(9):
        for shot in range(1 + person % 4):
            file = tmp_path / f"faces/p{person}/{shot}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"")
    (tmp_path / "faces/p0/notes.txt").write_text("")
    (tmp_path / "faces/empty").mkdir()
    return tmp_path / "faces"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [1, 2])
def test_drawn_pairs_are_right_distinct_and_no_person_is_in_two_folds(people: Path, seed: int, size: int) -> None:
    rows = folder_rows(people, folds=2, pairs_of_a_kind=size, seed=seed)
    assert Counter((row.fold, row.same) for row in rows) == {(f, s): size for f in "12" for s in (True, False)}
    for row in rows:
        assert (row.path_a.split("/")[0] == row.path_b.split("/")[0]) == row.same
        assert row.path_a != row.path_b
    assert len({frozenset((row.path_a, row.path_b)) for row in rows}) == len(rows)
    folds: dict[str, str] = {}
    for row in rows:
        for path in (row.path_a, row.path_b):
            assert folds.setdefault(path.split("/")[0], row.fold) == row.fold


@pytest.mark.parametrize("size", [1, 3, 4])
def test_same_pairs_are_those_drawn_from_a_list_of_all(people: Path, size: int) -> None:
    rows = folder_rows(people, 2, size, 3)
    generator = random.Random(3)
    names = [f"p{person}" for person in range(9)]
    generator.shuffle(names)
    every = [pair for name in names[::2] for pair in combinations(frames_of(people, name), 2)]
    drawn = [(row.path_a, row.path_b) for row in rows if row.fold == "1" and row.same]
    assert drawn == generator.sample(every, size)


def test_the_seed_decides_the_draw(people: Path) -> None:
    draws = [folder_rows(people, 2, 2, seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_a_dense_draw_lists_every_pair(tmp_path: Path) -> None:
    """Four people of two images a fold have 24 different pairs; asking for 4 same and 4 draws, for all 24 lists."""
    for person in range(8):
        for shot in range(2):
            (tmp_path / f"p{person}").mkdir(exist_ok=True)
            (tmp_path / f"p{person}/{shot}.png").write_bytes(b"")
    rows = folder_rows(tmp_path, 2, 4, 0)
    assert len({frozenset((row.path_a, row.path_b)) for row in rows}) == 16
    with pytest.raises(ValueError, match=r"fold 1: got 4 same pairs, wanted 5"):
        folder_rows(tmp_path, 2, 5, 0)


def test_a_folder_of_one_person_has_no_strangers(tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    for shot in range(9):
        (tmp_path / f"only/{shot}.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"got 0 different pairs in a fold, wanted 3"):
        folder_rows(tmp_path, 1, 3, 0)


def test_rows_come_back_through_a_pairs_file(people: Path, tmp_path: Path) -> None:
    rows = folder_rows(people, 2, 2, 0)
    write_rows(rows, tmp_path / "mine.tsv")
    assert read_pairs(tmp_path / "mine.tsv", people).paths == assemble(rows, "rows").paths


@pytest.mark.parametrize(
    ("people", "images", "wanted"),
    [(4, 2, 2), (5, 4, 12), (7, 3, 9), (9, 2, 4), (4, 9, 72), (40, 12, 300)],
    ids=str,
)
def test_a_fold_takes_as_many_pairs_as_lfw_or_as_there_are(
    tmp_path: Path, people: int, images: int, wanted: int
) -> None:
    for person in range(people):
        (tmp_path / f"p{person}").mkdir()
        for shot in range(images):
            (tmp_path / f"p{person}/{shot}.jpg").write_bytes(b"")
    assert lfw_like(people, images, folds=2) == wanted
    folder_rows(tmp_path, 2, wanted, seed=0)
    if wanted < 300:
        with pytest.raises(ValueError, match=f"wanted {wanted + 1}"):
            folder_rows(tmp_path, 2, wanted + 1, seed=0)


@pytest.mark.parametrize(("people", "images"), [(19, 2), (20, 1), (0, 5)])
def test_people_that_fill_no_fold_have_no_pairs(people: int, images: int) -> None:
    message = f"got {people} people with {images} images each, wanted 20 people with 2 images at least"
    with pytest.raises(ValueError, match=message):
        lfw_like(people, images, folds=10)
