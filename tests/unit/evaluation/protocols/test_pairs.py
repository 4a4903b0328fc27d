"""Pairs files: what is read, and the one-line message for everything that is wrong with one."""

import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluation.protocols.pairs import Pairs, frames_of, list_images, read_pairs
from pipeline.evaluation.protocols.pairs_file import Row, read_rows, write_rows

HEADER = "fold\tpath_a\tpath_b\tsame\n"
GOOD = [
    "1\tann/1.jpg\tann/2.jpg\t1",
    "1\tann/1.jpg\tbob/1.jpg\t0",
    "2\tbob/1.jpg\tbob/2.jpg\t1",
    "2\tbob/2.jpg\tann/2.jpg\t0",
]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("ann/1.jpg", "ann/2.jpg", "bob/1.jpg", "bob/2.jpg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path / "images"


def write(folder: Path, lines: list[str], header: str = HEADER) -> Path:
    file = folder / "pairs.tsv"
    file.write_text(header + "\n".join(lines) + "\n")
    return file


def test_images_identities_and_folds_are_numbered_in_order_of_mention(tmp_path: Path, images: Path) -> None:
    pairs = read_pairs(write(tmp_path, GOOD), images)
    assert pairs.paths == ("ann/1.jpg", "ann/2.jpg", "bob/1.jpg", "bob/2.jpg")
    assert pairs.identity.tolist() == [0, 0, 1, 1]
    assert (pairs.a.tolist(), pairs.b.tolist()) == ([0, 0, 2, 3], [1, 2, 3, 1])
    assert pairs.same.tolist() == [True, False, True, False]
    assert (pairs.folds, pairs.fold.tolist()) == (("1", "2"), [0, 0, 1, 1])
    assert pairs.impostors == 2


def test_scores_join_their_identities(tmp_path: Path, images: Path) -> None:
    scored = read_pairs(write(tmp_path, GOOD), images).scored(np.arange(4.0))
    assert (scored.identity_a.tolist(), scored.identity_b.tolist()) == ([0, 0, 1, 1], [0, 1, 1, 0])
    assert scored.weight.tolist() == [1, 1, 1, 1]


def test_columns_may_stand_in_any_order_beside_others(tmp_path: Path, images: Path) -> None:
    lines = ["\t".join([f[3], f[2], "note", f[1], f[0]]) for f in (line.split("\t") for line in GOOD)]
    shuffled = read_pairs(write(tmp_path, lines, "same\tpath_b\tremark\tpath_a\tfold\n"), images)
    assert shuffled.a.tolist() == read_pairs(write(tmp_path, GOOD), images).a.tolist()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2\tbob/1.jpg\tann/1.jpg\tyes", r"pairs.tsv, line 6: same: got 'yes', wanted 0 or 1"),
        ("2\tbob/1.jpg\tann/1.jpg", r"line 6: got no value for same, wanted 4 tab-separated values"),
        ("2\t\tann/1.jpg\t0", r"line 6: got no value for path_a"),
        ("2\tann/1.jpg\tann/1.jpg\t1", r"line 6: got ann/1.jpg twice, wanted two different images"),
        (
            "2\tann/1.jpg\tann/2.jpg\t0",
            r"line 6: same: got 0 for ann/1.jpg and ann/2.jpg, wanted 1 exactly when",
        ),
        (
            "2\tann/1.jpg\tbob/2.jpg\t1",
            r"line 6: same: got 1 for ann/1.jpg and bob/2.jpg, wanted 1 exactly when",
        ),
        ("2\tann/1.jpg\teve/1.jpg\t0", r"names eve/1.jpg, wanted an image or a folder of images in .*images"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, images: Path, line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_pairs(write(tmp_path, [*GOOD, line]), images)
    assert "\n" not in str(caught.value)


def test_absent_images_are_counted(tmp_path: Path, images: Path) -> None:
    lines = [*GOOD, "2\teve/1.jpg\teve/2.jpg\t1", "2\teve/1.jpg\tann/3.jpg\t0"]
    with pytest.raises(ValueError, match=r"names eve/1.jpg \(and 2 more\)"):
        read_pairs(write(tmp_path, lines), images)


def test_a_bad_file_is_named(tmp_path: Path, images: Path) -> None:
    with pytest.raises(ValueError, match=r"none.tsv: cannot be read: No such file"):
        read_pairs(tmp_path / "none.tsv", images)
    with pytest.raises(ValueError, match=r"got no column 'same', wanted fold, path_a, path_b, same"):
        read_pairs(write(tmp_path, GOOD, "fold\tpath_a\tpath_b\tlabel\n"), images)
    with pytest.raises(ValueError, match=r"got no column 'fold'"):
        read_pairs(write(tmp_path, [], ""), images)
    with pytest.raises(ValueError, match=r"got 1 folds, wanted at least 2"):
        read_pairs(write(tmp_path, GOOD[:2]), images)
    with pytest.raises(
        ValueError, match=r"fold 1: the other folds, .*, have 1 same and 0 different pairs, wanted some"
    ):
        read_pairs(write(tmp_path, GOOD[:3]), images)
    with pytest.raises(
        ValueError, match=r"got no column 'person_b', wanted fold, path_a, path_b, same, person_a, person"
    ):
        read_pairs(write(tmp_path, [], HEADER.rstrip() + "\tperson_a\n"), images)
    (tmp_path / "latin.tsv").write_bytes(
        f"{HEADER}1\tb/1.jpg\tb/2.jpg\t1\n1\tJosé/1.jpg\tb/1.jpg\t0\n".encode("latin-1")
    )
    with pytest.raises(ValueError, match=r"latin.tsv, line 3: got byte 0xe9, wanted UTF-8"):
        read_pairs(tmp_path / "latin.tsv", images)
    with pytest.raises(ValueError, match=r"images: got .*none, wanted an existing folder"):
        read_pairs(write(tmp_path, GOOD), images.parent / "none")


def test_a_folder_of_frames_counts_as_one_image(tmp_path: Path, images: Path) -> None:
    for name in ("ann/0/2.jpg", "ann/0/1.png", "ann/0/notes.txt", "bob/0/1.jpg", "bob/1/1.jpg"):
        (images / name).parent.mkdir(exist_ok=True)
        (images / name).write_bytes(b"")
    lines = [*GOOD, "2\tbob/0\tbob/1\t1", "2\tbob/0\tann/0\t0"]
    pairs = read_pairs(write(tmp_path, lines), images)
    assert pairs.paths[-3:] == ("bob/0", "bob/1", "ann/0")
    assert pairs.identity.tolist() == [0, 0, 1, 1, 1, 1, 0]
    assert frames_of(images, "ann/0") == ["ann/0/1.png", "ann/0/2.jpg"]
    assert frames_of(images, "ann/1.jpg") == ["ann/1.jpg"]
    (images / "bob/1/1.jpg").unlink()
    with pytest.raises(ValueError, match=r"names bob/1, wanted an image or a folder of images"):
        read_pairs(write(tmp_path, lines), images)


def test_images_are_found_at_any_depth(tmp_path: Path) -> None:
    for name in ("b/1.jpg", "a/x/2.PNG", "a/notes.txt", "3.jpeg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert list_images(tmp_path) == ["3.jpeg", "a/x/2.PNG", "b/1.jpg"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: got no images, wanted at least one of .jpeg, .jpg, .png"):
        list_images(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"absent: got no such folder, wanted one of images"):
        list_images(tmp_path / "absent")


def test_names_that_no_list_can_hold_are_refused(tmp_path: Path) -> None:
    """In another encoding than UTF-8, which Python reads as surrogates; or with what separates fields and lines."""
    folder = tmp_path / "faces"
    folder.mkdir()
    (folder / "José 1#.jpg").write_bytes(b"")
    assert list_images(folder) == ["José 1#.jpg"]
    odd = os.fsdecode("José.jpg".encode("latin-1"))
    (folder / odd).write_bytes(b"")
    with pytest.raises(ValueError, match=r"faces: got 'Jos\\udce9.jpg' and 0 more, wanted names in UTF-8"):
        list_images(folder)
    for name in (odd, "a\tb.jpg", "a\nb.jpg"):
        with pytest.raises(ValueError, match=r"got the name '.*', wanted UTF-8 without tabs and line breaks"):
            write_rows([Row("1", "a.jpg", name, True)], tmp_path / "p.tsv")
    assert not (tmp_path / "p.tsv").exists()


def test_without_people_their_images_and_pairs_are_gone(tmp_path: Path, images: Path) -> None:
    for name in ("eve/1.jpg", "eve/2.jpg"):
        (images / name).parent.mkdir(exist_ok=True)
        (images / name).write_bytes(b"")
    more = ["1\teve/1.jpg\teve/2.jpg\t1", "2\teve/1.jpg\tann/1.jpg\t0", "1\teve/2.jpg\tbob/1.jpg\t0"]
    lines = [more[0], GOOD[0], more[1], GOOD[1], more[2], *GOOD[2:]]
    file = write(tmp_path, lines)
    pairs = read_pairs(file, images)
    left, wanted = pairs.without({"eve", "stranger"}, "pairs"), read_pairs(write(tmp_path, GOOD), images)
    assert sorted(left.paths) == sorted(wanted.paths)

    def named(some: Pairs) -> list[tuple[str, str, bool, str]]:
        return [
            (some.paths[a], some.paths[b], bool(same), some.folds[fold])
            for a, b, same, fold in zip(some.a, some.b, some.same, some.fold, strict=True)
        ]

    assert named(left) == named(wanted)
    assert len(set(left.identity[left.a[left.same]])) == 2
    assert named(pairs.without(set(), "pairs")) == named(pairs)
    with pytest.raises(ValueError, match=r"x\.tsv, 3 of 7 pairs left: fold 1: the other folds, .*, have 0 same and 1"):
        pairs.without({"bob"}, "x.tsv")
    with pytest.raises(ValueError, match=r"x\.tsv, 1 of 7 pairs left: fold 1: got no pairs, wanted some"):
        pairs.without({"ann", "eve"}, "x.tsv")


CFP = ("001/frontal/01.jpg", "001/profile/01.jpg", "flat#1 a.jpg", "flat 2.jpg")


@pytest.fixture
def cfp(tmp_path: Path) -> Path:
    """CFP keeps a person's profiles in a folder below; other images lie in no folder, one with a blank and a #."""
    for name in CFP:
        (tmp_path / "cfp" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cfp" / name).write_bytes(b"")
    return tmp_path / "cfp"


NAMED = HEADER.rstrip() + "\tperson_a\tperson_b\n"
FLAT = [
    f"1\t{CFP[0]}\t{CFP[1]}\t1\t001\t001",
    f"1\t{CFP[0]}\t{CFP[2]}\t0\t001\tann",
    f"2\t{CFP[2]}\t{CFP[3]}\t1\tann\tann",
    f"2\t{CFP[1]}\t{CFP[3]}\t0\t001\tann",
]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_people_may_be_named_where_folders_do_not(tmp_path: Path, cfp: Path, mark: str) -> None:
    pairs = read_pairs(write(tmp_path, FLAT, mark + NAMED), cfp)
    assert pairs.people == ("001", "ann")
    assert pairs.paths == CFP
    assert pairs.identity.tolist() == [0, 0, 1, 1]
    assert pairs.oddities() == []
    with pytest.raises(ValueError, match=r"1 of 4 pairs left: fold 2: got no pairs"):
        pairs.without({"ann"}, "cfp.tsv")
    with pytest.raises(ValueError, match=r"line 6: got no value for person_b, wanted 6 tab-separated values"):
        read_pairs(write(tmp_path, [*FLAT, f"2\t{CFP[1]}\t{CFP[3]}\t0\t001"], NAMED), cfp)
    with pytest.raises(ValueError, match=r"pairs.tsv: got 001 and bob for 001/profile/01.jpg, wanted one person"):
        read_pairs(write(tmp_path, [*FLAT, f"2\t{CFP[1]}\t{CFP[3]}\t0\tbob\tann"], NAMED), cfp)


def test_what_is_odd_is_counted_where_people_are_named(tmp_path: Path, cfp: Path) -> None:
    odd = [
        f"1\t{CFP[2]}\t{CFP[2]}\t1\tann\tann",
        f"2\t{CFP[2]}\t{CFP[2]}\t0\tann\tann",
        f"2\t{CFP[0]}\t{CFP[1]}\t0\t001\t001",
        f"3\t{CFP[0]}\t{CFP[3]}\t1\t001\tann",
    ]
    pairs = read_pairs(write(tmp_path, FLAT + odd, NAMED), cfp)
    assert pairs.same.tolist() == [True, False, True, False, True, False, False, True]
    assert pairs.oddities() == [
        "2 pairs compare an image with itself: judged as listed",
        "2 different pairs show one person, by their names or by other pairs: judged as listed",
        "1 same pairs show two people, by their names: judged as listed",
        "1 folds hold pairs of one kind: judged as listed",
    ]


def test_rows_come_back_through_a_file_with_their_people(tmp_path: Path) -> None:
    rows = [Row("1", "a/1.jpg", "b/1.jpg", True), Row("2", "a/2.jpg", "b/2.jpg", False)]
    write_rows(rows, tmp_path / "plain.tsv")
    assert (tmp_path / "plain.tsv").read_text().startswith(HEADER)
    named = [*rows, Row("2", "a/1.jpg", "c#1 2.jpg", False, "", "cecil")]
    write_rows(named, tmp_path / "named.tsv")
    assert [tuple(row) for row in read_rows(tmp_path / "named.tsv")] == [(*row[:4], *row.people) for row in named]
