"""InsightFace sets of every pickle protocol are read; a pickle that would run something is refused and runs nothing."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.evaluation.protocols.insightface_bin import BinSet, extract, read_bin
from pipeline.evaluation.protocols.pairs import assemble, read_pairs
from pipeline.evaluation.protocols.pairs_file import write_rows


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


def python2_pickle(protocol: int) -> bytes:
    """As Python 2 wrote (strings for images), at its protocols 1 and 2, the highest; 1 has no opcodes for booleans."""
    out = b"\x80\x02(" if protocol == 2 else b"("
    out += b"]q\x01("
    for picture in SET[0]:
        out += b"T" + len(picture).to_bytes(4, "little") + picture
    out += b"e]q\x02("
    true, false = (b"\x88", b"\x89") if protocol == 2 else (b"I01\n", b"I00\n")
    out += b"".join(true if flag else false for flag in FLAGS)
    return out + b"et."


ARRAYS = [np.frombuffer(image, np.uint8) for image in SET[0]]
SHAPES: dict[str, Any] = {
    "bytes": SET,
    "a list for the pair": list(SET),
    "pairs of images": ([SET[0][i : i + 2] for i in range(0, len(SET[0]), 2)], FLAGS),
    "0 and 1": (SET[0], [int(flag) for flag in FLAGS]),
    "arrays": (ARRAYS, FLAGS),
    "arrays that may be written": ([array.copy() for array in ARRAYS], FLAGS),
    "columns": ([array.copy().reshape(-1, 1) for array in ARRAYS], FLAGS),
    "NumPy booleans": (SET[0], [np.bool_(flag) for flag in FLAGS]),
    "NumPy numbers": (SET[0], [np.int64(flag) for flag in FLAGS]),
    "an array of flags": (ARRAYS, np.array(FLAGS)),
    "an array of big-endian numbers": (ARRAYS, np.array(FLAGS, ">i4")),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_read_in_every_protocol(tmp_path: Path, shape: str, protocol: int) -> None:
    assert read_bin(store(tmp_path, SHAPES[shape], protocol)) == BinSet(*SET)


def test_names_of_both_numpys_are_known(tmp_path: Path) -> None:
    """NumPy 2 calls its room _core, as NumPy 1 called it core."""
    file = store(tmp_path, SHAPES["arrays that may be written"], 2)
    data = file.read_bytes()
    new, old = b"numpy._core.multiarray", b"numpy.core.multiarray"
    for wanted, there in ((new, old), (old, new)):
        file.write_bytes(data.replace(there, wanted))
        assert wanted in file.read_bytes()
        assert read_bin(file) == BinSet(*SET)


def python2_protocol0() -> bytes:
    """As Python 2 wrote at its default protocol: quoted strings with escapes, and 01 for True."""
    lines = [b"((lp0"]
    for picture in SET[0]:
        quoted = "".join(f"\\x{byte:02x}" for byte in picture).encode()
        lines += [b"S'" + quoted + b"'", b"a"]
    lines += [b"(lp1"]
    for flag in FLAGS:
        lines += [b"I01" if flag else b"I00", b"a"]
    joined = lines[0] + b"\n"
    for line in lines[1:]:
        joined += line if line == b"a" else line + b"\n"
    return joined + b"tp2\n."


def test_python_2s_protocol_0_is_read(tmp_path: Path) -> None:
    file = tmp_path / "old.bin"
    file.write_bytes(python2_protocol0())
    assert pickle.loads(python2_protocol0(), encoding="bytes") == SET
    assert read_bin(file) == BinSet(*SET)


@pytest.mark.parametrize("protocol", [1, 2])
def test_a_set_written_by_python_2_is_read(tmp_path: Path, protocol: int) -> None:
    file = tmp_path / "old.bin"
    file.write_bytes(python2_pickle(protocol))
    assert pickle.loads(python2_pickle(protocol), encoding="bytes") == SET
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
    with pytest.raises(ValueError, match=r"not an InsightFace verification set: got the name '\w+.mkdir', wanted only"):
        read_bin(file)
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"cbuiltins\neval\n(S'1'\ntR.", "got the name 'builtins.eval'"),
        (b"cos\nsystem\n(S'true'\ntR.", "got the name 'os.system'"),
        (b"(ios\nsystem\n.", "got opcode INST"),
        (b"(cnumpy\nndarray\no.", "got opcode OBJ"),
        (b"cnumpy\ndtype\n)\x81.", "got opcode NEWOBJ"),
        (b"\x82\x01.", "got opcode EXT1"),
        (b"P1\n.", "got opcode PERSID"),
        (b"(lS'x'\n(tR.", "got something else to call"),
        (b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR.", "got a NumPy type 'O8'"),
        (b"c_codecs\nencode\n(Vx\nVrot13\ntR.", "got the encoding 'rot13'"),
        (b"]N(d.", "got opcode DICT"),
        (b"]}b.", "got opcode EMPTY_DICT"),
        (b"]]b.", "got a state for something else"),
        (b"NNa.", "got values to append to no list"),
    ],
)
def test_what_could_call_is_refused_by_name(tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "bad.bin"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=f"bad.bin: not an InsightFace verification set: {message}"):
        read_bin(file)


def billion_laughs() -> bytes:
    """A list of a hundred lists, each of which holds the one before ten times: it must not even be printed."""
    laughs = b"]q\x00"
    for depth in range(1, 100):
        laughs += b"](" + (b"h" + bytes([depth - 1])) * 10 + b"eq" + bytes([depth])
    return b"(" + laughs + b"l"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (billion_laughs() + b"]\x86.", "got list among the images"),
        (b"](U\x01aU\x01ae]" + billion_laughs() + b"a\x86.", "got list among the flags"),
        (b"c_codecs\nencode\n(Vx\n" + billion_laughs() + b"tR.", "got list for a name"),
        (b"cnumpy\ndtype\n(" + billion_laughs() + b"tR.", "got list for a name"),
        (b"cnumpy\ndtype\n(Vu1\ntR(K\x03" + billion_laughs() + b"tb.", "got list for a name"),
        (billion_laughs() + b"Vx\n\x93.", "got list for a name"),
    ],
    ids=["image", "flag", "encoding", "type", "byte order", "module"],
)
def test_a_billion_laughs_takes_no_time_wherever_it_stands(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "laughs.bin").write_bytes(data)
    with pytest.raises(ValueError, match=f"laughs.bin: not an InsightFace verification set: {message}"):
        read_bin(tmp_path / "laughs.bin")


def test_a_large_image_that_is_named_often_is_held_once(tmp_path: Path) -> None:
    image = encoded("x") * 10_000
    content = read_bin(store(tmp_path, ([image] * 100_000, [True] * 50_000), 4))
    rows = extract(content, tmp_path / "images")
    assert len(rows) == 50_000
    assert len(list((tmp_path / "images").rglob("*.jpg"))) == 1


def test_a_type_of_several_fields_is_refused(tmp_path: Path) -> None:
    data = pickle.dumps((SET[0], np.array([1, 0, 1, 0], np.uint8)), 0).replace(b"Vu1\n", b"Vu1,O\n")
    (tmp_path / "set.bin").write_bytes(data)
    with pytest.raises(ValueError, match=r"got a NumPy type 'u1,O', wanted booleans or whole numbers"):
        read_bin(tmp_path / "set.bin")


def test_an_image_has_the_ending_of_its_kind_and_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [b"\x89PNG 1", b"\xff\xd8 2"]
    synced: list[str] = []

    def noted(descriptor: int, real: Callable[[int], None] = os.fsync) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().suffix)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    extract(BinSet(images, [True]), tmp_path)
    assert sorted(synced) == [".jpg", ".png"]
    found = {path.suffix: path.read_bytes() for path in tmp_path.rglob("*.*")}
    assert found == {".png": images[0], ".jpg": images[1]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((SET[0], FLAGS[:3]), r"got 8 images for 3 flags, wanted two for each"),
        (SET[0], r"got list, wanted a pair of lists"),
        ((FLAGS, FLAGS), r"got bool among the images, wanted encoded images"),
        ((SET[0], [b"x"] * 4), r"got bytes among the flags, wanted booleans, 0 or 1"),
        ((SET[0], [1, 0, 2, 0]), r"got the flag 2, wanted a boolean, 0 or 1"),
        ((SET[0], np.array([0.5])), r"got a NumPy type 'f8', wanted booleans or whole numbers"),
        (([*SET[0][:7], np.zeros(4, np.int16)], FLAGS), r"got Array among the images, wanted encoded images"),
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


def test_contradictory_and_identical_pairs_are_judged_as_listed(tmp_path: Path) -> None:
    """InsightFace compares what a set lists: an image with itself, and pictures that other flags call one person."""
    pictures = ["a", "a", "a", "a2", "a2", "a3", "a", "a3", "b", "c", "b", "b"]
    flags = [True, True, True, False, False, False]
    rows = extract(BinSet([encoded(p) for p in pictures * 10], flags * 10), tmp_path / "images")
    write_rows(rows, tmp_path / "set.tsv")
    pairs = read_pairs(tmp_path / "set.tsv", tmp_path / "images")
    assert pairs.same.tolist() == flags * 10
    assert pairs.oddities() == [
        "20 pairs compare an image with itself: judged as listed",
        "20 different pairs show one person, by their names or by other pairs: judged as listed",
    ]


def test_a_set_of_all_same_and_then_all_different_pairs_is_cut_as_insightface_cuts_it(tmp_path: Path) -> None:
    images = [encoded(f"{i // 2}-{i % 2}") for i in range(40)] + [encoded(f"{i // 2}-{i % 2}") for i in range(40)][::-1]
    flags = [True] * 20 + [False] * 20
    images[42::4] = images[0:38:4]
    pairs = assemble(extract(BinSet(images, flags), tmp_path / "images"), "set")
    assert [pairs.folds[fold] for fold in pairs.fold] == [str(i // 4 + 1) for i in range(40)]
    assert "10 of 10 folds hold pairs of one kind, so that the accuracy means little: " in pairs.oddities()[-1]


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
