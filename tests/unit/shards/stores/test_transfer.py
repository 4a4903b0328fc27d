"""Sets to and from a store: complete or without a manifest, compared on the way, not copied twice; faces in a store."""

import io
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from pipeline.files import NotWrittenError
from pipeline.shards.format.manifest import Manifest, ShardError
from pipeline.shards.images import SetAsideError
from pipeline.shards.making.build import make_shards
from pipeline.shards.making.plan import make_plan
from pipeline.shards.sources import remote
from pipeline.shards.sources.detect import open_source
from pipeline.shards.sources.folder import scan_folder
from pipeline.shards.stores.transfer import pull, push
from pipeline.shards.views.select import select
from pipeline.shards.workers import each_done


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for number in range(9):
        buffer = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG")
        (tmp_path / "faces" / str(number % 3)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "faces" / str(number % 3) / f"{number}.jpg").write_bytes(buffer.getvalue())
    source = scan_folder(tmp_path / "faces")
    make_shards(make_plan(source, tmp_path / "set", seed=0, samples_per_tar=4, size=None))
    return tmp_path / "set"


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class Watched:
    """The memory store, with each transfer noted and one that fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.moved: list[str] = []
        self.fail_at = ""
        store = fsspec.filesystem("memory")
        for name in ("put_file", "get_file"):
            monkeypatch.setattr(type(store), name, self._wrap(getattr(type(store), name)))

    def _wrap(self, real: Any) -> Any:
        def moved(store: Any, source: str, target: str, *args: Any, **more: Any) -> Any:
            name = source.rpartition("/")[2]
            if name == self.fail_at:
                raise OSError(5, "Input/output error")
            self.moved.append(name)
            return real(store, source, target, *args, **more)

        return moved


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


@pytest.mark.parametrize("scheme", ["memory://there", "file"])
def test_a_set_comes_back_as_it_went(shards: Path, tmp_path: Path, scheme: str) -> None:
    url = f"{scheme}{tmp_path.name}/set" if scheme != "file" else f"file://{tmp_path}/deep/there"
    seen: list[int] = []
    assert push(shards, url, progress=seen.append) == Manifest.load(shards)
    assert pull(url, tmp_path / "back", progress=seen.append) == Manifest.load(shards)
    assert snapshot(tmp_path / "back") == snapshot(shards)
    assert sum(seen) == 18


def test_what_is_there_is_not_copied_again(shards: Path, tmp_path: Path, store: Watched) -> None:
    url = f"memory://{tmp_path.name}/again"
    push(shards, url)
    store.moved.clear()
    push(shards, url)
    assert store.moved == []
    pull(url, tmp_path / "back")
    store.moved.clear()
    pull(url, tmp_path / "back")
    assert store.moved == []


def test_a_stopped_push_has_no_manifest_and_goes_on(shards: Path, tmp_path: Path, store: Watched) -> None:
    url = f"memory://{tmp_path.name}/stopped"
    store.fail_at = "faces-000002.tar"
    with pytest.raises(NotWrittenError, match="not copied: Input/output error"):
        push(shards, url)
    with pytest.raises(ShardError, match=r"manifest\.json: not found, wanted a finished set"):
        pull(url, tmp_path / "back")
    store.fail_at = ""
    store.moved.clear()
    push(shards, url)
    assert "faces-000000.tar" not in store.moved
    assert pull(url, tmp_path / "back") == Manifest.load(shards)


def test_a_stopped_pull_has_no_manifest_and_goes_on(shards: Path, tmp_path: Path, store: Watched) -> None:
    url = f"memory://{tmp_path.name}/pull"
    push(shards, url)
    store.fail_at = "index.npy"
    with pytest.raises(NotWrittenError, match=r"index\.npy: not copied"):
        pull(url, tmp_path / "back")
    assert not (tmp_path / "back" / "manifest.json").exists()
    store.fail_at = ""
    store.moved.clear()
    pull(url, tmp_path / "back")
    assert not [name for name in store.moved if name.startswith("faces-") and name.endswith(".tar")]
    assert snapshot(tmp_path / "back") == snapshot(shards)


def test_damage_on_either_side_is_found(shards: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/there"
    push(shards, url)
    tar = tmp_path / "there" / "faces-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    with pytest.raises(ShardError, match=r"back/faces-000001\.tar: sha256: got \w+, wanted \w+"):
        pull(url, tmp_path / "back")
    (shards / "faces-000000.tar").write_bytes(b"")
    with pytest.raises(ShardError, match=r"set/faces-000000\.tar: sha256: got"):
        push(shards, url)


def test_a_set_is_not_pushed_over_another(shards: Path, tmp_path: Path) -> None:
    make_shards(make_plan(scan_folder(tmp_path / "faces"), tmp_path / "b", seed=1, samples_per_tar=4, size=None))
    url = f"file://{tmp_path}/there"
    push(shards, url)
    with pytest.raises(ShardError, match="there: holds another set"):
        push(tmp_path / "b", url)
    assert snapshot(tmp_path / "there") == snapshot(shards)


def test_a_set_without_its_tars_is_refused(shards: Path, tmp_path: Path) -> None:
    select(shards, tmp_path / "view", np.ones(9, bool), kind="subset")
    with pytest.raises(
        ShardError, match=r"view: its tars lie in other folders \(\.\./set/faces-000000\.tar\): make tars of"
    ):
        push(tmp_path / "view", f"file://{tmp_path}/there")
    assert not (tmp_path / "there").exists()


def test_a_file_that_is_sent_is_never_seen_half_written(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by a reader, nor by another process that sends the same set."""
    seen: list[bool] = []
    there, store = tmp_path / "there", type(fsspec.filesystem("file"))
    real = store.put_file

    def slowly(self: Any, source: str, target: str, **more: Any) -> None:
        Path(target).write_bytes(b"half")
        seen.extend(path.read_bytes() == (shards / path.name).read_bytes() for path in there.glob("[!.]*"))
        real(self, source, target, **more)

    monkeypatch.setattr(store, "put_file", slowly)
    push(shards, f"file://{there}")
    assert len(seen) > 9 and all(seen)
    assert snapshot(there) == snapshot(shards)


@pytest.mark.parametrize("job", ["push", "pull"])
def test_two_processes_that_copy_one_set_end_with_it(shards: Path, tmp_path: Path, job: str) -> None:
    for attempt in range(6):
        there = tmp_path / str(attempt)
        assert set(each_done(partial(copy, job, shards, there), range(3), 3)) == {Manifest.load(shards).digest}
        assert snapshot(there) == snapshot(shards)


def copy(job: str, shards: Path, there: Path, _number: int) -> str:
    return (push(shards, f"file://{there}") if job == "push" else pull(f"file://{shards}", there)).digest


def test_a_set_is_not_pulled_over_another(shards: Path, tmp_path: Path) -> None:
    make_shards(make_plan(scan_folder(tmp_path / "faces"), tmp_path / "b", seed=1, samples_per_tar=4, size=None))
    before = snapshot(tmp_path / "b")
    with pytest.raises(ShardError, match="b: holds another set; choose another folder or remove it"):
        pull(f"file://{shards}", tmp_path / "b")
    assert snapshot(tmp_path / "b") == before


@pytest.mark.parametrize("job", ["push", "pull"])
@pytest.mark.parametrize("fail_at", ["", "faces-000000.idx", "faces-000001.tar", "rejected.tsv", "index.npy"])
def test_what_is_there_of_another_set_is_not_taken_for_its_own(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, fail_at: str
) -> None:
    """Tars are filled up to few sizes, and no manifest is there that says whose they are."""
    there, store = tmp_path / "there", type(fsspec.filesystem("file"))
    make_shards(make_plan(scan_folder(tmp_path / "faces"), there, seed=1, samples_per_tar=4, size=None))
    assert {tar.bytes for tar in Manifest.load(there).tars} == {tar.bytes for tar in Manifest.load(shards).tars}
    (there / "manifest.json").unlink()  # as a copy leaves it that was stopped

    def refusing(real: Any) -> Any:
        def moved(self: Any, one: str, other: str, **more: Any) -> None:
            if Path(one).name == fail_at:
                raise OSError(5, "Input/output error")
            real(self, one, other, **more)

        return moved

    for name in ("put_file", "get_file"):
        monkeypatch.setattr(store, name, refusing(getattr(store, name)))
    with pytest.raises(NotWrittenError) if fail_at else nullcontext():
        copy(job, shards, there, 0)
    fail_at = ""
    copy(job, shards, there, 0)
    assert snapshot(there) == snapshot(shards)


def test_an_unknown_kind_of_url_is_named(shards: Path) -> None:
    with pytest.raises(ShardError, match=r"nonsense://x: .*nonsense"):
        push(shards, "nonsense://x")


@pytest.mark.parametrize("workers", [1, 2])
def test_faces_in_a_store_become_the_same_shards(shards: Path, tmp_path: Path, workers: int) -> None:
    (tmp_path / "faces" / "notes.txt").touch()
    source = open_source(f"file://{tmp_path}/faces")
    assert [path for path, _, _ in source.set_aside] == ["notes.txt"]
    out = tmp_path / "remote"
    manifest = make_shards(make_plan(source, out, seed=0, samples_per_tar=4, size=None), workers=workers)
    assert manifest is not None
    assert manifest.tars == Manifest.load(shards).tars
    assert manifest.index_sha256 == Manifest.load(shards).index_sha256


def test_an_object_that_is_gone_is_set_aside_and_a_lost_store_ends_the_run(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(f"file://{shards.parent}/faces")
    (shards.parent / "faces" / source.key(3)).unlink()
    with pytest.raises(SetAsideError, match="unreadable: FileNotFoundError"):
        source.read(3)

    def lost(*_args: object, **_more: object) -> bytes:
        raise ConnectionError("no route")

    monkeypatch.setattr(type(fsspec.filesystem("file")), "cat_file", lost)
    monkeypatch.setattr(remote, "PAUSES", ())
    with pytest.raises(NotWrittenError, match=r"0/0\.jpg: not read: no route"):
        source.read(0)


def test_a_store_without_faces_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(ShardError, match=r"got 1 objects, wanted identity/image\.jpg"):
        open_source(f"file://{tmp_path}")
