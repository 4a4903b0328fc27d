"""InsightFace sets of every pickle protocol are read; a pickle that would run something is refused and runs nothing."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluation.protocols.insightface_bin import BinSet, extract, read_bin
from pipeline.evaluation.protocols.pairs import read_pairs
from pipeline.evaluation.protocols.published import write_rows


def encoded(name: str) -> bytes:
    return b"\xff\xd8 picture of " + name.encode() + bytes(range(256))


# Pairs (a, b), (c, d), ... of people A, B, ...; a2 is another picture of A, and "a" appears twice.
PICTURES = ["a", "a2", "a", "b", "b", "b2", "c", "a2"]
FLAGS = [True, False, True, False]
SET = ([encoded(name) for name in PICTURES], FLAGS)


def store(folder: Path, content: Any, protocol: int) -> Path:
    file = folder / "set.bin"
    file.write_bytes(pickle.dumps(content, protocol))
    return file


def python2_pickle() -> bytes:
    """As Python 2 wrote (strings for images), at its highest protocol."""
    out = b"\x80\x02("
    out += b"]q\x01("
    for picture in SET[0]:
        out += b"T" + len(picture).to_bytes(4, "little") + picture
    out += b"e]q\x02("
    out += b"".join(b"\x88" if flag else b"\x89" for flag in FLAGS)
    return out + b"et."


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_every_protocol_that_holds_bytes_is_read(tmp_path: Path, protocol: int) -> None:
    assert read_bin(store(tmp_path, SET, protocol)) == BinSet(*SET)


def test_a_set_written_by_python_2_is_read(tmp_path: Path) -> None:
    file = tmp_path / "old.bin"
    file.write_bytes(python2_pickle())
    assert pickle.loads(python2_pickle(), encoding="bytes") == SET
    assert read_bin(file) == BinSet(*SET)


def test_a_set_of_many_batches_and_repeated_images_is_read(tmp_path: Path) -> None:
    image = encoded("x")
    images = [image if i % 2 else encoded(str(i)) for i in range(5002)]  # the memo is used
    flags = [i % 3 == 0 for i in range(2501)]
    assert read_bin(store(tmp_path, (images, flags), 4)) == BinSet(images, flags)


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_calls_is_refused_and_does_not_call(tmp_path: Path, protocol: int) -> None:
    file = store(tmp_path, ([Bomb(tmp_path / "boom")], [True]), protocol)
    with pytest.raises(ValueError, match=r"not an InsightFace verification set: got opcode \w+, wanted only lists"):
        read_bin(file)
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((SET[0], FLAGS[:3]), r"got 8 images for 3 flags, wanted two for each"),
        (SET[0], r"got list, wanted a pair of lists"),
        ((FLAGS, FLAGS), r"got other values than encoded images and flags"),
        ((SET[0], [b"x"] * 4), r"got other values than encoded images and flags"),
        ((SET[0], [1, 0, 1, 0]), r"got opcode BININT1"),
        ({"a": 1}, r"got opcode EMPTY_DICT"),
    ],
)
def test_another_content_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_bin(store(tmp_path, content, 4))


def test_no_prefix_of_a_set_is_read_as_one(tmp_path: Path) -> None:
    whole = pickle.dumps(SET, 4)
    file = tmp_path / "torn.bin"
    for length in range(0, len(whole), 23):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"torn.bin: not an InsightFace verification set"):
            read_bin(file)


def test_people_are_what_the_flags_connect(tmp_path: Path) -> None:
    rows = extract(BinSet(*SET), tmp_path / "images")
    person = {name: row.split("/")[0] for name, row in zip(PICTURES, [p for r in rows for p in r[1:3]], strict=True)}
    assert person["a"] == person["a2"]
    assert person["b"] == person["b2"]
    assert len({person["a"], person["b"], person["c"]}) == 3
    assert len(list((tmp_path / "images").rglob("*.jpg"))) == 5
    for name, path in zip(PICTURES, [p for r in rows for p in r[1:3]], strict=True):
        assert (tmp_path / "images" / path).read_bytes() == encoded(name)


def test_folds_are_consecutive_tenths_and_the_pairs_file_reads(tmp_path: Path) -> None:
    images = [encoded(f"{i // 4}-{i % 4}") for i in range(120)]
    flags = [i % 2 == 0 for i in range(60)]
    for pair in range(1, 60, 2):  # a different pair compares a person with the next
        images[2 * pair + 1] = images[(2 * pair + 3) % 120]
    rows = extract(BinSet(images, flags), tmp_path / "images")
    assert [row.fold for row in rows] == [str(i // 6 + 1) for i in range(60)]
    write_rows(rows, tmp_path / "set.tsv")
    assert read_pairs(tmp_path / "set.tsv", tmp_path / "images").same.tolist() == flags


def test_flags_connect_people_through_third_pictures(tmp_path: Path) -> None:
    pictures = ["a", "b", "c", "b", "c", "d", "x", "y"]
    rows = extract(BinSet([encoded(p) for p in pictures], [True, True, True, False]), tmp_path)
    people = [Path(path).parent.name for row in rows for path in (row.path_a, row.path_b)]
    assert len(set(people[:6])) == 1
    assert len(set(people)) == 3
