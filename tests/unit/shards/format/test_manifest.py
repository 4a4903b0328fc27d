"""The manifest and the indexes: what is written is what is read, and every fault is named on one line."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.shards.format.index import SAMPLE, dali_lines, open_index, write_index
from pipeline.shards.format.manifest import Made, Manifest, ShardError, TarEntry

MANIFEST = Manifest(
    samples=5,
    identities=3,
    image_height=112,
    image_width=96,
    tars=(TarEntry("faces-000000.tar", 3, 10240, "aa"), TarEntry("faces-000001.tar", 2, 10240, "bb")),
    identities_sha256="cc",
    index_sha256="dd",
    set_aside=1,
    made=Made("folder", "ee", seed=7, samples_per_tar=3, tool="spherescale 0"),
)


def rows(count: int, first: int = 0) -> np.ndarray:
    one = np.zeros(count, SAMPLE)
    one["offset"] = np.arange(first, first + count) * 2**33
    one["label"] = np.arange(count)
    return one


def test_a_manifest_reads_back_as_written(tmp_path: Path) -> None:
    MANIFEST.save(tmp_path)
    assert Manifest.load(tmp_path) == MANIFEST
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_first_rows_find_the_tar_of_a_row() -> None:
    assert MANIFEST.first_rows.tolist() == [0, 3, 5]
    tars = np.searchsorted(MANIFEST.first_rows, np.arange(5), side="right") - 1
    assert tars.tolist() == [0, 0, 0, 1, 1]


def test_the_digest_sees_every_field() -> None:
    tars = (replace(MANIFEST.tars[0], sha256="zz"), MANIFEST.tars[1])
    others = [replace(MANIFEST, tars=tars), replace(MANIFEST, made=replace(MANIFEST.made, seed=8))]
    assert len({m.digest for m in [MANIFEST, replace(MANIFEST, identities=4), *others]}) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, r"manifest\.json: format: got 99, wanted 1"),
        ({"samples": 6}, r"samples: got 6, wanted 5, the sum over tars"),
        ({"samples": "5"}, r"samples: got '5', wanted int"),
        ({"identities": None}, r"identities: got None, wanted int"),
        ({"tars": [{"name": "a"}]}, r"samples: got None, wanted int"),
        ({"surprise": 1}, r"surprise"),
        ({"made": 3}, r"keys: "),
    ],
)
def test_a_wrong_manifest_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    MANIFEST.save(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ShardError, match=message) as caught:
        Manifest.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [("{", "not JSON"), ("[]", "got 'list', wanted 1")])
def test_a_manifest_that_is_no_manifest_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ShardError, match=message):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("left", [".progress/plan.json", "faces-000000.tar", "index.npy.0123456789ab.part"])
def test_a_missing_manifest_says_that_sharding_did_not_finish(tmp_path: Path, left: str) -> None:
    (tmp_path / left).parent.mkdir(exist_ok=True)
    (tmp_path / left).touch()
    with pytest.raises(ShardError, match=r"not found, wanted a finished shard folder \(a killed run: run it again\)$"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(("holds", "source"), [("ann/1.jpg", "{}"), ("train-000000.tar", "{}"), (None, "FACES")])
def test_a_folder_of_something_else_says_how_shards_are_made(tmp_path: Path, holds: str | None, source: str) -> None:
    folder = tmp_path / "the faces"
    if holds is not None:
        (folder / holds).parent.mkdir(parents=True, exist_ok=True)
        (folder / holds).touch()
    named = source.format(f"'{folder}'")
    wanted = f"(to make one: python stages/shard.py {named} OUT, or make shards SRC={named} OUT=OUT)"
    with pytest.raises(ShardError, match=f"not found, wanted a finished shard folder {re.escape(wanted)}$"):
        Manifest.load(folder)


def test_the_index_is_a_plain_npy_file_of_all_rows_in_order(tmp_path: Path) -> None:
    digest = write_index(tmp_path, [rows(3), rows(2, first=3)], samples=5)
    np.testing.assert_array_equal(np.load(tmp_path / "index.npy"), np.concatenate([rows(3), rows(2, 3)]))
    assert digest == hashlib.sha256((tmp_path / "index.npy").read_bytes()).hexdigest()
    mapped = open_index(tmp_path, MANIFEST)
    assert isinstance(mapped, np.memmap)
    assert mapped["offset"].tolist() == [i * 2**33 for i in range(5)]


def test_a_missing_or_foreign_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"index\.npy: not found, wanted the index of 5 samples"):
        open_index(tmp_path, MANIFEST)
    (tmp_path / "index.npy").write_bytes(b"")
    with pytest.raises(ShardError, match="not an index"):
        open_index(tmp_path, MANIFEST)
    write_index(tmp_path, [rows(4)], samples=4)
    with pytest.raises(ShardError, match=r"got \(4,\) .* wanted \(5,\)"):
        open_index(tmp_path, MANIFEST)


def test_a_cut_index_is_named(tmp_path: Path) -> None:
    write_index(tmp_path, [rows(5)], samples=5)
    content = (tmp_path / "index.npy").read_bytes()
    (tmp_path / "index.npy").write_bytes(content[:-1])
    with pytest.raises(ShardError, match="not an index"):
        open_index(tmp_path, MANIFEST)


def test_dali_lines_name_each_file_of_a_sample_in_order() -> None:
    lines = dali_lines(["jpg", "cls", "json"] * 2, [*range(6)], [*range(10, 16)], list("abcdef"))
    assert lines == "jpg 0 10 a cls 1 11 b json 2 12 c\njpg 3 13 d cls 4 14 e json 5 15 f\n"


@pytest.mark.parametrize("header", [b"PK\3\4", b"\x93NUMPY\1\0v\0{'descr': '<u8', ((("])
def test_an_index_with_a_damaged_header_is_refused(tmp_path: Path, header: bytes) -> None:
    write_index(tmp_path, [rows(3, 2)], 5)
    content = (tmp_path / "index.npy").read_bytes()
    (tmp_path / "index.npy").write_bytes(header + content[len(header) :])
    with pytest.raises(ShardError, match="not an index"):
        open_index(tmp_path, MANIFEST)
