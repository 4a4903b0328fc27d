"""Zips of identity folders, whole and damaged."""

import os
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.shards.checking.verify import verify
from pipeline.shards.format.manifest import ShardError
from pipeline.shards.images import SetAsideError
from pipeline.shards.making.plan import make_plan
from pipeline.shards.sources.detect import open_source
from tests.shards import contents, made, noise, write_people, write_tar_of

PEOPLE = ["佐藤 健", "ann", "ann"]


def write_zip(path: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.mkdir("faces")
        for number, person in enumerate(PEOPLE):
            archive.writestr(f"faces/{person}/{number}.jpg", noise(number))
        archive.writestr("faces/README.md", b"hello")
        for hidden in ("__MACOSX/faces/ann/._1.jpg", "__MACOSX/faces/ann/1.jpg", "faces/.trash/1.jpg"):
            archive.writestr(hidden, b"x")
    return path


TRUTH = {f"faces/{person}/{number}.jpg": (person, noise(number)) for number, person in enumerate(PEOPLE)}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("place", ["faces.zip", ".", "file://", "*.zip"])
def test_a_zip_of_identity_folders_is_a_source(tmp_path: Path, method: int, place: str) -> None:
    write_zip(tmp_path / "faces.zip", method)
    where = f"file://{tmp_path}" if place == "file://" else tmp_path / place
    source = open_source(where, copies=tmp_path / "copies")
    assert contents(source) == TRUTH
    assert list(source.identities) == ["ann", "佐藤 健"]
    assert [one[0::2] for one in source.set_aside] == [("faces/README.md", 0)]


def test_the_set_of_a_zip_is_that_of_its_folders(tmp_path: Path) -> None:
    people = write_people(tmp_path / "people")
    with zipfile.ZipFile(tmp_path / "people.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(people.rglob("*.*")):
            archive.write(path, path.relative_to(people))
    sets = []
    for place in (people, tmp_path / "people.zip"):
        out = tmp_path / f"{place.name} set"
        manifest = made(make_plan(open_source(place), out, seed=1, samples_per_tar=6, size=None), workers=2)
        assert verify(out, decode_every=1) == []
        sets.append([(tar.name, tar.sha256) for tar in manifest.tars])
    assert sets[0] == sets[1]


def test_a_zip_is_as_old_as_its_file_and_its_digest_sees_names_and_places(tmp_path: Path) -> None:
    digests = set()
    for name, method in (("1", zipfile.ZIP_STORED), ("9", zipfile.ZIP_STORED), ("1", zipfile.ZIP_DEFLATED)):
        data = write_zip(tmp_path / "a.zip", method).read_bytes()
        (tmp_path / "a.zip").write_bytes(data.replace(b"faces/ann/1.jpg", f"faces/ann/{name}.jpg".encode()))
        digests.add(open_source(tmp_path).digest())
    assert len(digests) == 3
    time.sleep(0.02)  # more than the file system's clock tick
    write_zip(tmp_path / "b.zip")
    a, b = ((tmp_path / name).stat().st_mtime for name in ("a.zip", "b.zip"))
    assert open_source(tmp_path).modified(np.array([0, 5, 2, 3])) == pytest.approx([a, b, a, b], rel=0, abs=0.01)


def test_a_damaged_image_is_set_aside(tmp_path: Path) -> None:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        data = bytearray(write_zip(tmp_path / "faces.zip", method).read_bytes())
        data[data.index(b"faces/ann/1.jpg") + 80] ^= 0xFF
        (tmp_path / "faces.zip").write_bytes(data)
        source = open_source(tmp_path / "faces.zip")
        with pytest.raises(SetAsideError, match="damaged in the archive: "):
            source.read(1)
        assert [source.read(number) for number in (0, 2)] == [noise(0), noise(2)]
    data[data.index(b"faces/ann/1.jpg") + len(b"faces/ann/1.jpg")] = 0xFF  # no kind of deflated block
    (tmp_path / "faces.zip").write_bytes(data)
    with pytest.raises(SetAsideError, match="damaged in the archive: Error -3 while decompressing"):
        open_source(tmp_path / "faces.zip").read(1)


def test_an_image_that_is_too_large_is_not_read_or_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ann/0.jpg", bytes(1 << 20))
        archive.writestr("ann/1.jpg", noise(1), zipfile.ZIP_STORED)
    source = open_source(tmp_path / "a.zip")
    for module in ("images", "sources.archive"):
        monkeypatch.setattr(f"pipeline.shards.{module}.LARGEST_IMAGE", 600)
    assert len(noise(1)) > 600
    for sample in range(2):
        with pytest.raises(SetAsideError, match=r"too large: got .* bytes, wanted at most 600"):
            source.read(sample)


def test_an_image_that_the_archive_ends_in_is_set_aside(tmp_path: Path) -> None:
    write_tar_of(tmp_path / "a.tar", [("ann/1.jpg", noise(1))])
    source = open_source(tmp_path / "a.tar")
    os.truncate(tmp_path / "a.tar", 512 + 40)
    with pytest.raises(SetAsideError, match="truncated: the archive ends in it"):
        source.read(0)


def test_what_cannot_be_read_of_a_zip_has_its_reason(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "faces.zip")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("faces/ann/3.jpg", noise(3))
    data = bytearray(path.read_bytes())
    listed = data.index("faces/佐藤 健/0.jpg".encode(), data.index(b"PK\1\2"))
    data[listed - 46 + 8] |= 1  # the flags of a file in the zip's list
    data[data.index(b"faces/ann/1.jpg") - 30] ^= 1  # of the header before a file
    path.write_bytes(data)
    source = open_source(path)
    assert {path: reason for path, reason, _ in source.set_aside if path.endswith("jpg")} == {
        "faces/佐藤 健/0.jpg": "encrypted",
        "faces/ann/1.jpg": "damaged: no header where the zip says",
        "faces/ann/3.jpg": "compressed with method 12: wanted stored or deflated",
    }
    assert len(source.labels) == 1
    path.write_bytes(data[:-30])
    with pytest.raises(ShardError, match=r"faces\.zip: not a whole zip: File is not a zip file"):
        open_source(path)
    data[data.index(b"PK\1\2") + 6] = 200  # the version that is needed to read it, 20.0
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"faces\.zip: not a whole zip: zip file version 20\.0"):
        open_source(path)


def test_an_archive_without_identity_folders_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("1.jpg", noise(1))
    with pytest.raises(
        ShardError, match=r"got no image in a\.zip, wanted identity/image; 1 × not in an identity folder"
    ):
        open_source(tmp_path / "a.zip")
