"""The protocols' own files, read by their published rules and refused with the line that breaks them."""

from collections import Counter
from pathlib import Path

import pytest

from pipeline.evaluation.protocols.pairs import Row, assemble, read_pairs
from pipeline.evaluation.protocols.published import folder_rows, lfw_rows, write_rows, ytf_rows

LFW = """\
2\t2
Abel_Pacheco\t1\t4
Akhmed_Zakayev\t1\t3
Abdel_Madi_Shabneh\t1\tDean_Barker\t1
Abdul_Rahman\t1\tPortia_de_Rossi\t12
Al_Pacino\t1\t2
Ann_Veneman\t3\t10
Al_Leiter\t1\tBen_Affleck\t2
Ann_Veneman\t5\tAl_Pacino\t3
"""
YTF = """\
split number, first name, second name, is same
1 , Shelley_Long/2, Shelley_Long/4 , 1
1, Ann_Pettway/3, Bob_Graham/0, 0
2, Al_Gore/0, Al_Gore/1, 1

2, Al_Gore/2, Bob_Graham/1, 0
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "protocol.txt"
    file.write_text(text)
    return file


def test_lfw_alternates_same_and_different_halves_of_a_fold(tmp_path: Path) -> None:
    rows = lfw_rows(write(tmp_path, LFW))
    assert [row.fold for row in rows] == ["1"] * 4 + ["2"] * 4
    assert [row.same for row in rows] == [True, True, False, False] * 2
    assert rows[0] == Row("1", "Abel_Pacheco/Abel_Pacheco_0001.jpg", "Abel_Pacheco/Abel_Pacheco_0004.jpg", True)
    assert rows[3].path_b == "Portia_de_Rossi/Portia_de_Rossi_0012.jpg"
    assert lfw_rows(write(tmp_path, LFW), ".png")[5].path_b == "Ann_Veneman/Ann_Veneman_0010.png"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2\t2\nAbel", "300\nAbel", r"got 8 pairs, wanted 600 \(1 folds of 2 × 300\)"),
        ("Al_Pacino\t1\t2\n", "", r"got 7 pairs, wanted 8 \(2 folds of 2 × 2\)"),
        ("Abel_Pacheco\t1\t4", "Abel_Pacheco\t1\tBob\t4", r"pair 1: got 4 fields, wanted name n m"),
        ("Al_Leiter\t1\tBen_Affleck\t2", "Al_Leiter\t1\t2", r"pair 7: got 3 fields, wanted name n other m"),
        ("Abel_Pacheco\t1\t4", "Abel_Pacheco\tx\t4", r"pair 1: got numbers 'x' and '4', wanted whole ones"),
    ],
)
def test_a_bad_lfw_line_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in LFW
    with pytest.raises(ValueError, match=message):
        lfw_rows(write(tmp_path, LFW.replace(old, new)))


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_missing_first_line_costs_no_pair(tmp_path: Path, mark: str) -> None:
    headless = LFW.partition("\n")[2]
    assert lfw_rows(write(tmp_path, mark + headless)) == lfw_rows(write(tmp_path, mark + LFW))


def test_development_sets_are_cut_into_folds(tmp_path: Path) -> None:
    """pairsDevTrain.txt and pairsDevTest.txt: the pairs of a kind on the first line, then both kinds without folds."""
    same = [f"Person_{i}\t1\t2" for i in range(20)]
    different = [f"Person_{i}\t1\tOther_{i}\t1" for i in range(20)]
    rows = lfw_rows(write(tmp_path, "\n".join(["20", *same, *different])))
    assert rows == lfw_rows(write(tmp_path, "\n".join([*same, *different])))
    assert Counter((row.fold, row.same) for row in rows) == {
        (str(f), s): 2 for f in range(1, 11) for s in (True, False)
    }
    assert len(assemble(rows, "dev").folds) == 10


def test_videos_without_a_first_line_are_all_read(tmp_path: Path) -> None:
    assert ytf_rows(write(tmp_path, YTF.partition("\n")[2])) == ytf_rows(write(tmp_path, YTF))


def test_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_bytes("José 1 2\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"pairs.txt: got byte 0xe9 at 3, wanted UTF-8"):
        lfw_rows(tmp_path / "pairs.txt")


def test_ytf_names_videos(tmp_path: Path) -> None:
    rows = ytf_rows(write(tmp_path, YTF))
    assert rows[0] == Row("1", "Shelley_Long/2", "Shelley_Long/4", True)
    assert [(row.fold, row.same) for row in rows] == [("1", True), ("1", False), ("2", True), ("2", False)]
    assert assemble(rows, "ytf").identity.tolist() == [0, 0, 1, 2, 3, 3, 3, 2]
    with pytest.raises(ValueError, match=r"line 3: got '1, Ann_Pettway/3, Bob_Graham/0, no', wanted: split, first"):
        ytf_rows(write(tmp_path, YTF.replace("Graham/0, 0", "Graham/0, no")))


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
