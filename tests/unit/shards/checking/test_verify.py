"""The check of a set against its manifest."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.shards.checking.verify import verify
from pipeline.shards.format.manifest import Manifest
from tests.shards import make_set_of


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return make_set_of(tmp_path, "a", {"ann": 3, "bob": 1, "cat": 5, "dan": 2})


def rewrite(shards: Path, name: str, change: bytes, at: int) -> None:
    """Change a tar and make the manifest agree, so that only deeper checks can see it."""
    path = shards / name
    content = bytearray(path.read_bytes())
    old = Manifest.load(shards)
    content[at : at + len(change)] = change
    path.write_bytes(content)
    agree(shards, old)


def agree(shards: Path, old: Manifest) -> None:
    text = (shards / "manifest.json").read_text()
    for tar in old.tars:
        text = text.replace(tar.sha256, hashlib.sha256((shards / tar.name).read_bytes()).hexdigest())
    text = text.replace(old.index_sha256, hashlib.sha256((shards / "index.npy").read_bytes()).hexdigest())
    (shards / "manifest.json").write_text(text)


def test_a_sound_set_has_no_faults(shards: Path) -> None:
    seen: list[int] = []
    assert verify(shards, decode_every=1, workers=2, progress=seen.append) == []
    assert sum(seen) == 11


@pytest.mark.parametrize("name", ["faces-000001.tar", "index.npy", "identities.txt"])
def test_a_changed_byte_is_found_by_the_digest(shards: Path, name: str) -> None:
    content = bytearray((shards / name).read_bytes())
    content[-1] ^= 1
    (shards / name).write_bytes(content)
    assert (name, "sha256: got") in [(file, what[:11]) for file, what in verify(shards)]


def test_a_missing_tar_is_a_fault(shards: Path) -> None:
    (shards / "faces-000001.tar").unlink()
    assert [(file, what[:24]) for file, what in verify(shards)] == [("faces-000001.tar", "sha256: got no file, wan")]


def test_an_index_that_points_elsewhere_is_found(shards: Path) -> None:
    old = Manifest.load(shards)
    rows = np.load(shards / "index.npy")
    rows["offset"][2] += 1
    rows["label"][7] = (rows["label"][7] + 1) % 4
    rows["label"][9] = 77
    np.save(shards / "index.npy", rows)
    agree(shards, old)
    faults = [what for _, what in verify(shards)]
    found = [fault.split(", wanted")[0] for fault in faults if fault.startswith("index row")]
    assert found == [
        f"index row 2: got {rows['size'][2]} bytes at {rows['offset'][2]}",
        f"index row 7: got label {rows['label'][7]}",
        "index row 9: got label 77",
    ]
    assert "label: got 77, wanted less than 4" in faults


def test_an_image_that_does_not_decode_is_found(shards: Path) -> None:
    # A PNG carries checksums; libjpeg fills what it cannot decode with grey and says nothing.
    name, at = next((p.name, p.read_bytes().find(b"IDAT")) for p in shards.glob("*.tar") if b"IDAT" in p.read_bytes())
    rewrite(shards, name, b"\0\0\0\0", at + 20)
    assert [file for file, _ in verify(shards, decode_every=1)] == [name]
    assert verify(shards, decode_every=0) == []


def test_an_idx_of_another_tar_is_found(shards: Path) -> None:
    (shards / "faces-000000.idx").write_text((shards / "faces-000001.idx").read_text())
    assert verify(shards) == [("faces-000000.tar", "its .idx is of another tar")]


def test_every_fault_is_listed_and_none_ends_the_check(shards: Path) -> None:
    tars = Manifest.load(shards).tars
    (shards / tars[0].name).unlink()
    content = bytearray((shards / tars[1].name).read_bytes())
    content[1] ^= 1  # of the first header
    (shards / tars[1].name).write_bytes(content)
    (shards / tars[2].name).with_suffix(".idx").unlink()
    (shards / "index.npy").unlink()
    (shards / "identities.txt").unlink()
    faults = verify(shards, decode_every=1)
    found = [(file, re.split(": got|,|;", what)[0]) for file, what in faults]
    assert found == [
        ("faces-000000.tar", "sha256"),
        ("faces-000001.tar", "damaged: bad checksum"),
        ("faces-000001.tar", "sha256"),
        ("faces-000002.tar", "its .idx"),
        ("identities.txt", "sha256"),
        ("index.npy", f"{shards}/index.npy: not found"),
        ("index.npy", "sha256"),
    ]
