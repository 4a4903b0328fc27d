"""`stages/pairs.py` turns each protocol into a file that the evaluation reads."""

import pickle
from pathlib import Path

import pytest

from cluster.stop import EXIT_REFUSED
from pipeline.evaluation.protocols.pairs import read_pairs
from tests.end_to_end.stage import run_stage

LFW = "2\t1\nann\t1\t2\nann\t1\tbob\t1\nbob\t1\t2\nbob\t2\tann\t2\n"
YTF = "split, first, second, same\n1, ann/0, ann/1, 1\n1, ann/0, bob/0, 0\n2, bob/0, bob/1, 1\n2, bob/1, ann/1, 0\n"
LIST = """\
ann/ann_0001.jpg ann/ann_0002.jpg 1
bob/bob_0001.jpg bob/bob_0002.jpg 1
ann/ann_0001.jpg bob/bob_0001.jpg 0
bob/bob_0002.jpg ann/ann_0002.jpg 0
"""


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for person in ("ann", "bob"):
        for place in (
            f"{person}/{person}_0001.jpg",
            f"{person}/{person}_0002.jpg",
            f"{person}/0/1.jpg",
            f"{person}/1/1.jpg",
        ):
            (tmp_path / "faces" / place).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "faces" / place).write_bytes(b"")
    for number in range(4):
        for shot in range(2):
            (tmp_path / f"frames/p{number}").mkdir(parents=True, exist_ok=True)
            (tmp_path / f"frames/p{number}/{shot}.jpg").write_bytes(b"")
    (tmp_path / "pairs.txt").write_text(LFW)
    (tmp_path / "splits.txt").write_text(YTF)
    (tmp_path / "list.txt").write_text(LIST)
    for fold, (same, different) in {"01": ("1,1", "1,2"), "02": ("2,2", "2,1")}.items():
        (tmp_path / f"Protocol/Split/FP/{fold}").mkdir(parents=True)
        (tmp_path / f"Protocol/Split/FP/{fold}/same.txt").write_text(same)
        (tmp_path / f"Protocol/Split/FP/{fold}/diff.txt").write_text(different)
    for kind, shot in (("F", 0), ("P", 1)):
        text = f"1 ../Data/Images/ann/{shot}/1.jpg\n2 ../Data/Images/bob/{shot}/1.jpg\n"
        (tmp_path / f"Protocol/Pair_list_{kind}.txt").write_text(text)
    images = [bytes([number, shot]) for i in range(20) for number, shot in ((i, 0), (i + i % 2, 1))]
    (tmp_path / "set.bin").write_bytes(pickle.dumps((images, [i % 2 == 0 for i in range(20)])))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "images", "printed"),
    [
        (["lfw", "pairs.txt"], "faces", "4 pairs (2 same, 2 different) of 4 images in 2 folds"),
        (["ytf", "splits.txt"], "faces", "4 pairs (2 same, 2 different) of 4 images in 2 folds"),
        (["cfp", "Protocol"], "faces", "4 pairs (2 same, 2 different) of 4 images in 2 folds"),
        (
            ["list", "list.txt", "--person", r"(\w+)_\d+"],
            "faces",
            "4 pairs (2 same, 2 different) of 4 images in 2 folds",
        ),
        (["bin", "set.bin", "--images", "set"], "set", "20 pairs (10 same, 10 different)"),
        (["folder", "frames", "--folds", "2", "--size", "1"], "frames", "4 pairs (2 same, 2 different)"),
    ],
)
def test_every_protocol_becomes_a_pairs_file(
    scene: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], images: str, printed: str
) -> None:
    kind, source, *options = arguments
    assert run_stage("pairs.py", kind, source, "out.tsv", *options) == 0
    assert printed in capsys.readouterr().out
    assert len(read_pairs(scene / "out.tsv", scene / images).same) == int(printed.split(maxsplit=1)[0])


def test_what_is_odd_is_said_when_it_is_written(scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (scene / "list.txt").write_text(LIST + "ann/ann_0001.jpg ann/ann_0001.jpg 0\n")
    assert run_stage("pairs.py", "list", "list.txt", "out.tsv") == 0
    *odd, one_kind = capsys.readouterr().err.splitlines()
    assert odd == [
        "pairs: 1 pairs compare an image with itself: judged as listed",
        "pairs: 1 different pairs show one person, by their names or by other pairs: judged as listed",
    ]
    assert one_kind.startswith("pairs: 3 of 4 folds hold pairs of one kind, so that the accuracy means little: wanted")
    assert len(read_pairs(scene / "out.tsv", scene / "faces").same) == 5
    assert run_stage("pairs.py", "list", "list.txt", "out.tsv", "--person", "ann") == 2
    assert "got 'ann', wanted a group in it, such as" in capsys.readouterr().err


def test_a_fault_is_one_line(scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_stage("pairs.py", "lfw", "splits.txt", "out.tsv") == EXIT_REFUSED
    assert run_stage("pairs.py", "bin", "pairs.txt", "out.tsv", "--images", "set") == EXIT_REFUSED
    assert run_stage("pairs.py", "folder", "none", "out.tsv") == EXIT_REFUSED
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["pairs", "pairs", "pairs"]
    for option in ("--folds", "--size"):
        assert run_stage("pairs.py", "folder", ".", "out.tsv", option, "-3") == 2
        assert f"argument {option}: got '-3', wanted a whole number of at least 1" in capsys.readouterr().err
    assert not (scene / "out.tsv").exists()
