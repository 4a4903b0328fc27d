"""Every source at a URL is the same bytes as on a local disk."""

import contextlib
import http.server
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest

from pipeline.shards.format.manifest import Manifest, ShardError
from pipeline.shards.making.build import make_shards
from pipeline.shards.making.plan import make_plan
from pipeline.shards.sources import Source
from pipeline.shards.sources.detect import open_source
from pipeline.shards.sources.folder import scan_folder
from pipeline.shards.stores.urls import changed_in, fetch_whole, open_store, remove_progress
from pipeline.shards.workers import each_done
from tests.shards import noise, write_parquet, write_ten_faces
from tests.web import serving

SOURCES = ("folders", "list", "recordio", "tars", "parquet")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same ten faces of three people as every kind of source."""
    root = tmp_path_factory.mktemp("data")
    write_ten_faces(root / "folders")
    (root / "list").mkdir()
    for number in range(10):
        (root / "list" / f"{number}.jpg").write_bytes(noise(number))
    (root / "list" / "faces.txt").write_text("".join(f"{n}.jpg\t{n % 3}\n" for n in range(10)))
    make_shards(make_plan(scan_folder(root / "folders"), root / "tars", seed=4, samples_per_tar=4, size=None))
    write_records(root / "recordio")
    return root


def write_records(folder: Path) -> None:
    folder.mkdir()
    with (folder / "train.rec").open("wb") as rec, (folder / "train.idx").open("w") as idx:
        for key in range(1, 11):
            content = struct.pack("<IfQQ", 0, (key - 1) % 3, key, 0) + noise(key - 1)
            idx.write(f"{key}\t{rec.tell()}\n")
            rec.write(struct.pack("<II", 0xCED7230A, len(content)) + content + bytes(-len(content) % 4))


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder behind a small HTTP server."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_args: Any) -> None:
            pass

    with serving(partial(Quiet, directory=folder)) as url:
        yield url


@contextlib.contextmanager
def at(scheme: str, folder: Path) -> Iterator[str]:
    """A URL at which the folder's files are."""
    if scheme == "http":
        pytest.importorskip("aiohttp")
        with served(folder) as url:
            yield url
    elif scheme == "file":
        yield f"file://{folder}"
    else:
        fsspec.filesystem("memory").put(f"{folder}/", f"{folder}/", recursive=True)
        yield f"memory:/{folder}"


def samples(source: Source) -> list[tuple[str, bytes]]:
    return [(source.identities[label], source.read(i)) for i, label in enumerate(source.labels.tolist())]


@pytest.mark.parametrize("scheme", ["file", "memory", "http"])
@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_at_a_url_is_the_local_one(data: Path, tmp_path: Path, scheme: str, kind: str) -> None:
    if kind == "parquet":
        write_parquet(data / "parquet")
    name = {"list": "list/faces.txt", "parquet": "parquet/a.parquet"}.get(kind, kind)
    local = open_source(data / name)
    with at(scheme, data / name.partition("/")[0]) as url:
        remote = open_source("/".join([url, *name.split("/")[1:]]), copies=tmp_path / "copies")
        assert samples(remote) == samples(local)
    assert (remote.kind, remote.digest()) == (local.kind, local.digest())
    assert len(samples(local)) == 10
    assert (tmp_path / "copies").exists() == (kind in {"recordio", "tars", "parquet"})


def test_large_files_are_copied_once_and_never_half(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, copies = f"file://{data}/tars", tmp_path / "copies"
    store = type(fsspec.filesystem("file"))
    real, fetched = store.get_file, []

    def cut(self: Any, there: str, here: str, **more: Any) -> None:
        fetched.append(Path(there).name)
        real(self, there, here, **more)
        if there.endswith("2.tar") and fetched.count("faces-000002.tar") == 1:
            Path(here).write_bytes(b"half")

    monkeypatch.setattr(store, "get_file", cut)
    with pytest.raises(ShardError, match=r"faces-000002\.tar: got 4 bytes, wanted \d+"):
        open_source(url, copies=copies)
    assert not (copies / "faces-000002.tar").exists()
    before = len(fetched)
    assert samples(open_source(url, copies=copies)) == samples(open_source(data / "tars"))
    again = fetched[before:]
    assert again[0] == "faces-000002.tar"
    assert len(set(fetched)) == len(fetched) - 1


def test_copies_of_another_url_are_not_taken_for_its_own(data: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        shutil.copytree(data / "tars", tmp_path / name)
    with served(tmp_path) as url:
        for _ in range(2):
            open_source(f"{url}/first", copies=tmp_path / "copies")
        with pytest.raises(ShardError, match=f"copies: holds copies of {url}/first, wanted those of {url}/second; rem"):
            open_source(f"{url}/second", copies=tmp_path / "copies")


def is_marked(url: str, _job: int) -> bool:
    return hasattr(open_store(url)[0], "mark")


def test_a_store_is_opened_anew_in_each_process(tmp_path: Path) -> None:
    open_store(f"file://{tmp_path}")[0].mark = True
    assert is_marked(f"file://{tmp_path}", 0)
    assert list(each_done(partial(is_marked, f"file://{tmp_path}"), range(2), 2)) == [False, False]


def test_a_copy_is_on_the_disk_before_it_has_its_name(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def noted(descriptor: int, real: Callable[[int], None] = os.fsync) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    store, root = open_store(f"file://{data}/tars")
    fetch_whole(store, f"{root}/faces-000002.tar", tmp_path / "here.tar")
    assert [name[:9] for name in synced] == ["here.tar."]  # aside


def test_a_copy_that_cannot_fit_is_refused_before_it_begins(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=10))
    copies = tmp_path / "copies"
    with pytest.raises(ShardError, match=r"copies: got 0\.0 GB free, wanted 0\.0 GB for the copy"):
        open_source(f"file://{data}/tars", copies=copies)
    assert not list(copies.glob("*.tar"))


def test_large_files_without_a_folder_for_copies_are_refused(data: Path) -> None:
    with pytest.raises(ShardError, match=r"recordio: got train\.idx, wanted a folder to copy it to"):
        open_source(f"file://{data}/recordio")


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_an_object_that_was_replaced_is_noticed(data: Path, tmp_path: Path, scheme: str) -> None:
    shutil.copytree(data / "folders", tmp_path / "faces")
    with at(scheme, tmp_path / "faces") as url:
        planned = make_plan(open_source(url), tmp_path / "out", seed=1, samples_per_tar=3, size=None)
        make_shards(planned)
        assert make_shards(planned) == Manifest.load(tmp_path / "out")
        time.sleep(0.02)
        content = noise(99)
        store, root = fsspec.core.url_to_fs(url)
        store.pipe_file(f"{root}/ann/0.jpg", content)
        again = make_plan(open_source(url), tmp_path / "out", seed=1, samples_per_tar=3, size=None)
        with pytest.raises(ShardError, match="0 samples came, 0 went, 1 changed"):
            make_shards(again)


@pytest.mark.parametrize(
    ("info", "seconds"),
    [
        ({"mtime": 5, "created": 7.5}, 7.5),
        ({"LastModified": datetime(1970, 1, 1, 0, 1, tzinfo=timezone.utc)}, 60),
        ({"updated": "1970-01-01T00:02:00.000Z"}, 120),
        ({"size": 3, "created": None, "updated": "yesterday"}, 0),
    ],
)
def test_stores_say_in_their_own_words_when_an_object_changed(info: dict[str, Any], seconds: float) -> None:
    assert changed_in(info) == seconds


def test_what_was_on_the_way_is_removed_while_another_process_removes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".progress" / "a").mkdir(parents=True)
    store, root = open_store(f"file://{tmp_path}")
    real = type(store).rm
    missed: list[str] = []

    def remove(self: Any, path: str, **more: Any) -> None:
        if not missed:
            missed.append(path)
            raise FileNotFoundError(path)  # what was listed is gone by now
        real(self, path, **more)

    monkeypatch.setattr(type(store), "rm", remove)
    remove_progress(store, root)
    assert missed and not (tmp_path / ".progress").exists()
