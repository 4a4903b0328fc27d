"""The table of sources: a new kind is a file and a line, here both from outside the project."""

import errno
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.shards.checking.verify import verify
from pipeline.shards.format.manifest import Manifest, ShardError
from pipeline.shards.format.rejected import SetAside
from pipeline.shards.making.plan import make_plan
from pipeline.shards.making.sequential import make_set
from pipeline.shards.sources import OneByOne, detect
from pipeline.shards.sources.detect import Kind, Options, open_source
from pipeline.shards.sources.splits import Choice
from pipeline.shards.views.select import select
from tests.shards import contents, noise


@dataclass(frozen=True)
class Tape(OneByOne):
    """A toy source: one file of `name length` lines, each followed by an image; it can be read forwards only."""

    path: Path
    identities: Sequence[str]
    labels: NDArray[np.uint32]
    starts: Sequence[int]
    sizes: Sequence[int]
    reads: list[int]
    kind: str = "tape"
    sequential: bool = True
    set_aside: Sequence[SetAside] = ()

    def digest(self) -> str:
        return f"{self.identities} {self.labels.tolist()} {self.starts}"

    def key(self, sample: int) -> str:
        return f"{self.identities[self.labels[sample]]}/{sample}"

    def read(self, sample: int) -> bytes:
        self.reads.append(sample)
        return self.path.read_bytes()[self.starts[sample] :][: self.sizes[sample]]


def open_tape(path: Path, _options: Options) -> Tape:
    names, starts, sizes = [], [], []
    with (path if path.is_file() else next(path.glob("*.tape"))).open("rb") as file:
        for name, size in (line.split() for line in iter(file.readline, b"")):
            names.append(name.decode())
            starts.append(file.tell())
            sizes.append(int(size))
            file.seek(int(size), 1)
    identities, labels = np.unique(names, return_inverse=True)
    return Tape(Path(file.name), identities.tolist(), labels.astype(np.uint32), starts, sizes, [])


@pytest.mark.parametrize("kind", ["folder", "list", "set", "url", "rec"])
def test_a_split_of_a_source_that_has_none_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "faces" / "ann").mkdir(parents=True)
    (tmp_path / "faces" / "ann" / "1.jpg").write_bytes(noise(1))
    (tmp_path / "faces.csv").write_text("path,identity,split\nfaces/ann/1.jpg,ann,test\n")
    (tmp_path / "faces.rec").touch()
    planned = make_plan(open_source(tmp_path / "faces"), tmp_path / "tars", seed=0, samples_per_tar=9, size=None)
    make_set(planned)
    select(tmp_path / "tars", tmp_path / "set", np.ones(1, bool), kind="subset")
    places = {"list": "faces.csv", "set": "set", "rec": "faces.rec"}
    place = f"file://{tmp_path}/faces" if kind == "url" else tmp_path / places.get(kind, "faces")
    with pytest.raises(ShardError, match=r"(has no splits: got --split train|got splits \(no split\)), wanted"):
        open_source(place, options=Options(choice=Choice(splits=("train",))))


def forbidden(folder: Path) -> list[Path]:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def test_folders_beside_what_is_read_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody may have unpacked an archive where it lay, or only one of several."""
    (tmp_path / "ann").mkdir()
    (tmp_path / "ann" / "1.jpg").write_bytes(noise(1))
    with zipfile.ZipFile(tmp_path / "bob.zip", "w") as archive:
        archive.writestr("bob/2.jpg", noise(2))
    assert list(open_source(tmp_path).identities) == ["bob"]
    assert f"{tmp_path}: its *.zip is read, its folders of images are not" in caplog.text
    caplog.clear()
    monkeypatch.setattr(Path, "iterdir", forbidden)
    assert list(open_source(tmp_path).identities) == ["bob"]
    monkeypatch.undo()
    assert list(open_source(tmp_path / "*.zip").identities) == ["bob"]
    assert not caplog.text


@pytest.fixture
def tape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(detect, "KINDS", (*detect.KINDS, Kind(("*.tape",), (), open_tape)))
    pieces = (b"%s %d\n" % (b"zoe" if n % 3 else b"adam", len(noise(n))) + noise(n) for n in range(10))
    (tmp_path / "faces.tape").write_bytes(b"".join(pieces))
    return tmp_path / "faces.tape"


def faces() -> Iterator[tuple[str, tuple[str, bytes]]]:
    for number in range(10):
        name = "zoe" if number % 3 else "adam"
        yield f"{name}/{number}", (name, noise(number))


def test_a_kind_of_source_from_outside_becomes_a_set(tape: Path, tmp_path: Path) -> None:
    source = open_source(tape)
    assert isinstance(source, Tape)
    assert contents(source) == dict(faces())
    source.reads.clear()
    plan = make_plan(source, tmp_path / "set", seed=3, samples_per_tar=4, size=(8, 8))
    manifest = make_set(plan)
    assert manifest == Manifest.load(tmp_path / "set")
    assert (manifest.samples, manifest.identities, manifest.made.source, manifest.made.seed) == (10, 2, "tape", 3)
    assert verify(tmp_path / "set", decode_every=1) == []
    assert contents(open_source(tmp_path / "set")) == dict(faces())
    assert source.reads == list(range(10)), "a sequential source is read once, in its own order"


def test_folders_without_an_image_or_a_tar_are_identity_folders(tmp_path: Path) -> None:
    (tmp_path / "ann").mkdir()
    (tmp_path / "ann" / "notes.txt").touch()
    with pytest.raises(ShardError, match="got 1 identity folder without images"):
        open_source(tmp_path)
    (tmp_path / "ann" / "album.tar").touch()
    (tmp_path / "ann" / "1.jpg").write_bytes(noise(1))
    assert contents(open_source(tmp_path)) == {"ann/1.jpg": ("ann", noise(1))}, "a tar beside an image is none of a set"


@pytest.mark.parametrize("place", ["faces.tape", "."])
def test_its_file_is_copied_from_a_url(tape: Path, tmp_path: Path, place: str) -> None:
    source = open_source(f"file://{tape.parent / place}", copies=tmp_path / "copies")
    assert contents(source) == dict(faces())
    assert (tmp_path / "copies" / "faces.tape").read_bytes() == tape.read_bytes()
