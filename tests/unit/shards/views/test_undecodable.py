"""The list of samples that training could not decode: of one set, whatever a kill left of it."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.files import NotWrittenError
from pipeline.shards.format.manifest import Manifest, ShardError
from pipeline.shards.views.hygiene import clean
from pipeline.shards.views.undecodable import note_undecodable, read_undecodable
from tests.shards import made, plan_of, rejected, write_people


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("set")
    made(plan_of(write_people(root / "faces"), root / "set"))
    return root / "set"


def describe(sample: int) -> str:
    return f"sample {sample}\tof a\nset"


def test_a_list_is_of_one_set(shards: Path, tmp_path: Path) -> None:
    manifest, path = Manifest.load(shards), tmp_path / "undecodable.tsv"
    other = replace(manifest, index_sha256="0")
    note_undecodable(path, manifest, [5, 3], describe)
    note_undecodable(path, other, [4], describe)
    note_undecodable(path, manifest, [5, 27], describe)
    assert read_undecodable(path, manifest) == [3, 5, 27]
    assert read_undecodable(path, other) == [4]
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    assert lines[0] == ["set", "sample", "where"]
    assert lines[1] == [manifest.digest, "5", "sample 5 of a set"]
    assert len(lines) == 6


def test_a_torn_or_foreign_line_is_passed_over(shards: Path, tmp_path: Path) -> None:
    manifest, path = Manifest.load(shards), tmp_path / "undecodable.tsv"
    note_undecodable(path, manifest, [1, 2], describe)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert read_undecodable(path, manifest) in ([], [1], [1, 2])
    path.write_bytes(whole + f"{manifest.digest}\t28\tno such sample\n{manifest.digest}\tx\ty\n\xff\n".encode())
    assert read_undecodable(path, manifest) == [1, 2]
    os.truncate(path, len(whole) - 3)
    note_undecodable(path, manifest, [9], describe)
    assert read_undecodable(path, manifest) == [1, 2, 9]


def test_a_list_that_is_not_there_or_cannot_be_written_is_named(shards: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(shards)
    with pytest.raises(FileNotFoundError):
        read_undecodable(tmp_path / "u", manifest)
    with pytest.raises(NotWrittenError, match="nowhere/u: not written: No such file"):
        note_undecodable(tmp_path / "nowhere" / "u", manifest, [1], describe)


def test_cleaning_leaves_out_what_training_could_not_decode(shards: Path, tmp_path: Path) -> None:
    manifest, path = Manifest.load(shards), tmp_path / "undecodable.tsv"
    note_undecodable(path, manifest, [3, 20], describe)
    usual = clean(shards, tmp_path / "usual")
    cleaned = clean(shards, tmp_path / "clean", undecodable=path)
    assert cleaned.manifest.samples == usual.manifest.samples - 2
    found = rejected(tmp_path / "clean")
    assert len(found) == 2 and set(found.values()) == {"does not decode"}
    with pytest.raises(
        ShardError, match=r"undecodable\.tsv: names no sample of .*/usual, wanted some of the set \w{12}$"
    ):
        clean(tmp_path / "usual", tmp_path / "c", undecodable=path)
    assert not (tmp_path / "c").exists()
