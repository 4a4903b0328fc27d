"""Lists of paths in both forms: their pairs, folds and people, and the line that breaks them."""

import re
from pathlib import Path

import pytest

from pipeline.evaluation.protocols.pairs import assemble
from pipeline.evaluation.protocols.pairs_file import Row
from pipeline.evaluation.protocols.path_lists import list_rows


def write(folder: Path, lines: list[str]) -> Path:
    file = folder / "list.txt"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_a_pair_a_line_with_people_as_the_flags_have_them(tmp_path: Path) -> None:
    """As agedb_30_pair.txt: paths of a flat folder. b's third image is never compared as the same: another person."""
    lines = []
    for fold in range(10):
        lines += [f"{fold}a1.jpg {fold}a2.jpg 1", f"{fold}a2.jpg {fold}a3.jpg 1", ""]
        lines += [f"{fold}a1.jpg {fold}b1.jpg 0", f"{fold}a1.jpg {fold}b2.jpg 0"]
    rows = list_rows(write(tmp_path, lines))
    assert [row.fold for row in rows] == [str(i // 4 + 1) for i in range(40)]
    assert [row.same for row in rows] == [True, True, False, False] * 10
    pairs = assemble(rows, "list")
    people = dict(zip(pairs.paths, (pairs.people[i] for i in pairs.identity), strict=True))
    assert [people[f"3{name}.jpg"] for name in ("a1", "a2", "a3", "b1", "b2")] == ["3a1.jpg"] * 3 + [
        "3b1.jpg",
        "3b2.jpg",
    ]
    assert pairs.oddities() == []


def test_people_are_found_in_paths(tmp_path: Path) -> None:
    lines = ["12_Maria Callas_35_f.jpg\t7_Maria Callas_40_f.jpg\t1", "12_Maria Callas_35_f.jpg\t1_Ann_30_f.jpg\t0"]
    rows = list_rows(write(tmp_path, lines * 2), re.compile(r"\d+_(.+?)_"))
    assert rows[1] == Row("1", "12_Maria Callas_35_f.jpg", "1_Ann_30_f.jpg", False, "Maria Callas", "Ann")
    with pytest.raises(ValueError, match=r"list.txt: person: got 1_Ann_30_f.jpg, wanted a name in it where x\(\.\)"):
        list_rows(write(tmp_path, ["x1.jpg 1_Ann_30_f.jpg 0"]), re.compile("x(.)"))
    with pytest.raises(ValueError, match=r"list.txt: person: got 2.jpg, wanted a name in it"):
        list_rows(write(tmp_path, ["x1.jpg 2.jpg 0"]), re.compile(r"(x)?\d"))


def test_an_image_a_line_with_folds_of_the_same_pairs_only(tmp_path: Path) -> None:
    """As pairs_CALFW.txt: all same pairs with their folds, then all different ones with 0."""
    lines = []
    for pair in range(20):
        lines += [f"P_{pair}_0001.jpg {pair // 2 + 1}", f"P_{pair}_0002.jpg {pair // 2 + 1}"]
    for pair in range(20):
        lines += [f"P_{pair}_0001.jpg 0", f"P_{pair + 1}_0001.jpg 0"]
    rows = list_rows(write(tmp_path, lines), re.compile(r"(.+)_\d+"))
    assert [row.fold for row in rows] == 2 * [str(i // 2 + 1) for i in range(20)]
    assert rows[21] == Row("1", "P_1_0001.jpg", "P_2_0001.jpg", False, "P_1", "P_2")
    assert assemble(rows, "calfw").oddities() == []


def test_blocks_of_an_image_a_line_are_folds(tmp_path: Path) -> None:
    """As pairs_CPLFW.txt, if it has ten blocks: here those of different pairs come first."""
    lines = []
    for fold in range(10):
        lines += [
            f"{fold}a.jpg 0",
            f"{fold}b.jpg 0",
            f"{fold}a.jpg 1",
            f"{fold}c.jpg 1",
            f"{fold}a.jpg 1",
            f"{fold}d.jpg 1",
        ]
    assert [row.fold for row in list_rows(write(tmp_path, lines))] == [str(i // 3 + 1) for i in range(30)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a.jpg b.jpg 1", "a b.jpg c.jpg 1"], r"line 2: got 'a b.jpg c.jpg 1', wanted two paths and 0 or 1 \(tabs if"),
        (["a.jpg b.jpg 2"], r"line 1: got 'a.jpg b.jpg 2', wanted two paths and 0 or 1"),
        (["a.jpg 1", "b.jpg x"], r"line 2: got 'b.jpg x', wanted a path and a number"),
        (["a.jpg 1", "b.jpg 1", "c.jpg 0"], r"line 3: got 3 images, wanted two for each pair"),
        (["a.jpg 1", "b.jpg 0"], r"line 2: got 0 after 1, wanted one number for both images of a pair"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list_rows(write(tmp_path, lines))
