"""The protocols' own files, read by their published rules and refused with the line that breaks them."""

from pathlib import Path

import pytest

from pipeline.evaluation.protocols.pairs import assemble
from pipeline.evaluation.protocols.pairs_file import Row
from pipeline.evaluation.protocols.published import cfp_rows, lfw_rows, ytf_rows

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
        ("2\t2\nAbel", "Folds 2\nAbel", r"pair 1: got 2 fields, wanted name n other m"),
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


def test_ytf_names_videos(tmp_path: Path) -> None:
    rows = ytf_rows(write(tmp_path, YTF))
    assert rows[0] == Row("1", "Shelley_Long/2", "Shelley_Long/4", True)
    assert [(row.fold, row.same) for row in rows] == [("1", True), ("1", False), ("2", True), ("2", False)]
    assert assemble(rows, "ytf").identity.tolist() == [0, 0, 1, 2, 3, 3, 3, 2]
    with pytest.raises(ValueError, match=r"line 3: got '1, Ann_Pettway/3, Bob_Graham/0, no', wanted: split, first"):
        ytf_rows(write(tmp_path, YTF.replace("Graham/0, 0", "Graham/0, no")))


def blocks(count: int, size: int) -> list[str]:
    """`count` folds of `size` same and then `size` different pairs, in LFW's form."""
    lines = []
    for fold in range(count):
        lines += [f"Per Son_{fold}_{i}\t1\t2" for i in range(size)]
        lines += [f"Per Son_{fold}_{i}\t1\tOther_{i}\t1" for i in range(size)]
    return lines


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_missing_first_line_costs_no_pair(tmp_path: Path, mark: str) -> None:
    """RFW's lists have none; some mirrors of LFW's begin with a byte order mark."""
    lines = blocks(10, 3)
    rows = lfw_rows(write(tmp_path, mark + "\n".join(["10\t3", *lines])))
    assert lfw_rows(write(tmp_path, mark + "\n".join(lines))) == rows
    assert [row.fold for row in rows] == [str(i // 6 + 1) for i in range(60)]
    assert rows[0].path_a == "Per Son_0_0/Per Son_0_0_0001.jpg"


def test_development_sets_are_cut_into_tenths_of_each_kind(tmp_path: Path) -> None:
    """pairsDevTrain.txt and pairsDevTest.txt: the pairs of a kind on the first line, then both kinds, and no folds."""
    rows = lfw_rows(write(tmp_path, "\n".join(["20", *blocks(1, 20)])))
    assert rows == lfw_rows(write(tmp_path, "\n".join(blocks(1, 20))))
    assert [row.same for row in rows] == [True] * 20 + [False] * 20
    assert [row.fold for row in rows] == 2 * [str(i // 2 + 1) for i in range(20)]
    assert len(assemble(rows, "dev").folds) == 10


def test_videos_without_a_first_line_are_all_read(tmp_path: Path) -> None:
    assert ytf_rows(write(tmp_path, YTF.partition("\n")[2])) == ytf_rows(write(tmp_path, YTF))


def test_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_bytes("10 300\nJosé 1 2\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"pairs.txt, line 2: got byte 0xe9, wanted UTF-8"):
        lfw_rows(tmp_path / "pairs.txt")


@pytest.fixture
def protocol(tmp_path: Path) -> Path:
    """CFP's folder with two people of two frontal images and one profile, and two folds."""
    root = tmp_path / "Protocol"
    frontal = [f"../Data/Images/00{person}/frontal/0{shot}.jpg" for person in (1, 2) for shot in (1, 2)]
    profile = [f"../Data/Images/00{person}/profile/01.jpg" for person in (1, 2)]
    root.mkdir()
    for name, paths in (("F", frontal), ("P", profile)):
        text = "".join(f"{number} {path}\n" for number, path in enumerate(paths, start=1))
        (root / f"Pair_list_{name}.txt").write_text(text)
    for split, pairs in (("FP", [("1,1", "1,2"), ("3,2", "4,1")]), ("FF", [("1,2", "1,3"), ("3,4", "2,4")])):
        for fold, (same, different) in enumerate(pairs, start=1):
            folder = root / "Split" / split / f"{fold:02d}"
            folder.mkdir(parents=True)
            (folder / "same.txt").write_text(f"{same}\n\n")
            (folder / "diff.txt").write_text(f"{different}\n")
    return root


def test_cfp_compares_frontal_with_profile_or_frontal_faces(protocol: Path) -> None:
    assert cfp_rows(protocol, "FP") == [
        Row("01", "001/frontal/01.jpg", "001/profile/01.jpg", True, "001", "001"),
        Row("01", "001/frontal/01.jpg", "002/profile/01.jpg", False, "001", "002"),
        Row("02", "002/frontal/01.jpg", "002/profile/01.jpg", True, "002", "002"),
        Row("02", "002/frontal/02.jpg", "001/profile/01.jpg", False, "002", "001"),
    ]
    assert assemble(cfp_rows(protocol, "FP"), "cfp").people == ("001", "002")
    assert cfp_rows(protocol, "FF")[3] == Row("02", "001/frontal/02.jpg", "002/frontal/02.jpg", False, "001", "002")


def test_what_is_wrong_with_cfp_is_named(protocol: Path, tmp_path: Path) -> None:
    (protocol / "Split/FP/02/diff.txt").write_text("1,1\n1,9\n")
    with pytest.raises(ValueError, match=r"02/diff.txt, line 2: got 1,9, wanted numbers of .*Pair_list files"):
        cfp_rows(protocol, "FP")
    (protocol / "Split/FP/02/diff.txt").unlink()
    with pytest.raises(ValueError, match=r"02/diff.txt: cannot be read: No such file"):
        cfp_rows(protocol, "FP")
    (protocol / "Pair_list_P.txt").write_text("1 01.jpg\n")
    with pytest.raises(ValueError, match=r"Pair_list_P.txt: got '1 01.jpg', wanted a number and a path"):
        cfp_rows(protocol, "FP")
    (tmp_path / "Split/FF").mkdir(parents=True)
    (tmp_path / "Pair_list_F.txt").write_text("")
    with pytest.raises(ValueError, match=r"got no pairs, wanted CFP's folder Protocol with Split/FF/01/same.txt"):
        cfp_rows(tmp_path, "FF")
