"""A set of shards opened: bytes of any sample, and damage that is refused and named."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.reading.tars import ShardSet
from pipeline.shards.format.manifest import ShardError
from tests.faces import ROOT, write_shards


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("set"), identities=5, images=6)


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(original, tmp_path / "shards"))


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """Room for ten files more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    already = sum(1 for _ in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (already + 10, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def many_tars(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 samples, one a tar."""
    folder, faces = tmp_path_factory.mktemp("many"), original.parent / "faces"
    for copy in range(10):
        for person in faces.iterdir():
            shutil.copytree(person, folder / "faces" / f"{person.name}-{copy}", copy_function=os.link)
    command = [sys.executable, str(ROOT / "stages" / "shard.py"), str(folder / "faces"), str(folder / "set")]
    subprocess.run([*command, "--samples-per-tar", "1"], check=True, capture_output=True)
    return folder / "set"


@pytest.mark.usefixtures("few_descriptors")
def test_images_of_more_tars_than_descriptors_are_held_at_once(many_tars: Path) -> None:
    shards = ShardSet(many_tars)
    assert len(shards.samples_per_tar) == 300
    images = shards.read(range(300))
    assert all(image[:2].tobytes() == b"\xff\xd8" for image in images)
    index = np.load(many_tars / "index.npy")
    for tar, image, entry in zip(shards.manifest.tars, images, index, strict=True):
        with (many_tars / tar.name).open("rb") as file:
            file.seek(int(entry["offset"]))
            assert file.read(int(entry["size"])) == image.tobytes()


def spoil_label(folder: Path) -> None:
    index = np.load(folder / "index.npy")
    index["label"][3] = 5
    np.save(folder / "index.npy", index)


SPOILS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing index": (lambda f: (f / "index.npy").unlink(), r"index.npy: not found, wanted the index of 30 samples"),
    "short index": (lambda f: np.save(f / "index.npy", np.load(f / "index.npy")[:-1]), r"index.npy: got \(29,\)"),
    "not an index": (lambda f: (f / "index.npy").write_bytes(b"x" * 99), r"index.npy: not an index"),
    "missing tar": (lambda f: (f / "faces-000000.tar").unlink(), r"faces-000000.tar: missing tar, wanted \d+ bytes"),
    "truncated tar": (
        lambda f: (f / "faces-000000.tar").write_bytes((f / "faces-000000.tar").read_bytes()[:-600]),
        r"faces-000000.tar: got \d+ bytes, wanted \d+ as in manifest.json; truncated",
    ),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), r"manifest.json: not found"),
}


@pytest.mark.parametrize("name", SPOILS)
def test_spoiled_shards_are_refused_at_opening(folder: Path, name: str) -> None:
    spoil, message = SPOILS[name]
    spoil(folder)
    with pytest.raises(ShardError, match=message):
        ShardSet(folder)


def test_a_label_outside_the_classes_is_refused_and_named(folder: Path) -> None:
    spoil_label(folder)
    shards = ShardSet(folder)
    with pytest.raises(ShardError, match=r"sample 3 in faces-000000.tar has label 5, wanted less than 5 identities"):
        shards.labels(np.arange(30))


def test_a_tar_that_is_cut_or_removed_while_it_is_read_is_an_error_in_words(folder: Path) -> None:
    """In words: reading past the end of a mapped file is SIGBUS, which ends the process."""
    shards = ShardSet(folder)
    (image,) = shards.read([29])
    assert image[:2].tobytes() == b"\xff\xd8"
    tar = folder / "faces-000000.tar"
    os.truncate(tar, 512)
    with pytest.raises(ShardError, match=r"faces-000000.tar: got 512 bytes, wanted \d+ as in manifest.json; truncated"):
        shards.read([29])
    assert ".tar, " in shards.describe(29), "what is left of it is not described"
    tar.unlink()
    with pytest.raises(ShardError, match=r"faces-000000\.tar: missing tar"):
        shards.read([29])
    assert ".tar, " in shards.describe(29)


def test_a_sample_is_described_by_key_and_tar(folder: Path) -> None:
    assert re.fullmatch(r"sample 29 \(\d+\.jpg, faces-000000\.tar, \d+ bytes at \d+\)", ShardSet(folder).describe(29))
