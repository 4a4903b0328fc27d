"""Every source at a URL, and sets written straight to one, are the same bytes as on a local disk."""

import contextlib
import functools
import http.server
import os
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest

from pipeline.files import NotWrittenError
from pipeline.shards.format.manifest import Manifest, ShardError
from pipeline.shards.making.build import make_shards
from pipeline.shards.making.plan import Plan, make_plan
from pipeline.shards.making.sequential import make_set
from pipeline.shards.making.to_store import make_in_store
from pipeline.shards.sources import Source
from pipeline.shards.sources.detect import open_source
from pipeline.shards.sources.folder import scan_folder
from pipeline.shards.stores.urls import changed_in, fetch_whole, open_store, remove_progress
from pipeline.shards.workers import each_done
from tests.shards import noise

SOURCES = ("folders", "list", "recordio", "tars", "parquet")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same ten faces of three people as every kind of source."""
    root = tmp_path_factory.mktemp("data")
    for number in range(10):
        # As whole paths, "ann smith/..." would stand before "ann/...".
        for folder in (root / "folders" / ("ann", "ann smith", "bob")[number % 3], root / "list"):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.jpg").write_bytes(noise(number))
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


def write_parquet(folder: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder.mkdir(exist_ok=True)
    table = arrow.table({"image": [noise(n) for n in range(10)], "label": [n % 3 for n in range(10)]})
    parquet.write_table(table, folder / "a.parquet", row_group_size=4)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder behind a small HTTP server."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


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


# --- out ---------------------------------------------------------------------------------------------------


def plan(data: Path, out: Path, seed: int = 1) -> Plan:
    return make_plan(scan_folder(data / "folders"), out, seed=seed, samples_per_tar=3, size=None)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stored(url: str) -> dict[str, bytes]:
    store, root = fsspec.core.url_to_fs(url)
    return {path.rpartition("/")[2]: store.cat_file(path) for path in store.find(root)}


@pytest.fixture
def whole(data: Path, tmp_path: Path) -> dict[str, bytes]:
    make_shards(plan(data, tmp_path / "whole"))
    return snapshot(tmp_path / "whole")


@pytest.mark.parametrize(("scheme", "workers"), [("memory", 1), ("file", 1), ("file", 2)])
def test_a_set_in_a_store_is_that_on_a_disk(
    data: Path, tmp_path: Path, whole: dict[str, bytes], scheme: str, workers: int
) -> None:
    url = f"{scheme}://{tmp_path}/there/set"
    made = make_in_store(plan(data, tmp_path / "way"), url, partial(make_shards, workers=workers))
    assert made == Manifest.load(tmp_path / "whole")
    assert stored(url) == whole
    assert not (tmp_path / "way").exists()
    assert make_in_store(plan(data, tmp_path / "way"), url, make_shards) == made  # nothing to do
    with pytest.raises(ShardError, match=r"there/set: holds other shards \(seed: got 1, wanted 2\)"):
        make_in_store(plan(data, tmp_path / "way", seed=2), url, make_shards)
    assert not (tmp_path / "way").exists()


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_parts_need_nothing_in_common_but_the_store(
    data: Path, tmp_path: Path, whole: dict[str, bytes], scheme: str
) -> None:
    url = f"{scheme}://{tmp_path}/there"
    made = []
    for part in (2, 0, 1):
        own = plan(data, tmp_path / f"machine {part}" / "way")
        made.append(make_in_store(own, url, partial(make_shards, part=(part, 3))))
        assert not list((tmp_path / f"machine {part}").rglob("*.tar"))
        assert ("manifest.json" in stored(url)) == (part == 1)
    assert made == [None, None, Manifest.load(tmp_path / "whole")]
    assert stored(url) == whole


def test_another_machine_goes_on_without_writing_a_tar_twice(
    data: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, store = f"file://{tmp_path}/there", type(fsspec.filesystem("file"))
    real, sent = store.mv, []

    def move(self: Any, aside: str, there: str, **more: Any) -> None:
        real(self, aside, there, **more)
        sent.append(Path(there).name)
        if sent.count("faces-000001.json") == 1 and there.endswith("faces-000001.json"):
            raise KeyboardInterrupt

    monkeypatch.setattr(store, "mv", move)
    with pytest.raises(KeyboardInterrupt):
        make_in_store(plan(data, tmp_path / "one" / "way"), url, make_shards)
    with pytest.raises(ShardError, match=r"there: holds other shards \(seed: got 1, wanted 2\)"):
        make_in_store(plan(data, tmp_path / "two" / "way", seed=2), url, make_shards)
    make_in_store(plan(data, tmp_path / "three" / "way"), url, make_shards)
    assert stored(url) == whole
    assert len(set(sent)) == len(sent)


@pytest.mark.parametrize("stop_at", ["faces-000001.json", "faces-000003.json", "identities.txt"])
def test_what_was_sent_to_another_url_is_sent_to_this_one_too(
    data: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, stop_at: str
) -> None:
    store = type(fsspec.filesystem("file"))
    real = store.put_file

    def stop(self: Any, here: str, there: str, **more: Any) -> None:
        real(self, here, there, **more)
        if there.endswith(stop_at):
            raise KeyboardInterrupt

    monkeypatch.setattr(store, "put_file", stop)
    with pytest.raises(KeyboardInterrupt):
        make_in_store(plan(data, tmp_path / "way"), f"file://{tmp_path}/first", make_shards)
    monkeypatch.undo()
    make_in_store(plan(data, tmp_path / "way"), f"file://{tmp_path}/second", make_shards)
    assert stored(f"file://{tmp_path}/second") == whole
    make_in_store(plan(data, tmp_path / "way"), f"file://{tmp_path}/first", make_shards)
    assert stored(f"file://{tmp_path}/first") == whole


def test_the_record_of_a_tar_that_is_written_again_is_sent_again(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "folders", tmp_path / "folders")
    url = f"file://{tmp_path}/there"
    make_in_store(plan(tmp_path, tmp_path / "one" / "way"), url, partial(make_shards, part=(0, 2)))
    for image in (tmp_path / "folders").rglob("*.jpg"):
        image.write_bytes(noise(50 + int(image.stem)))
    make_in_store(plan(tmp_path, tmp_path / "one" / "way"), url, partial(make_shards, part=(0, 2)))
    make_in_store(plan(tmp_path, tmp_path / "two" / "way"), url, partial(make_shards, part=(1, 2)))
    make_shards(plan(tmp_path, tmp_path / "whole"))
    assert stored(url) == snapshot(tmp_path / "whole")


def one_part(data: Path, folder: Path, number: int) -> str | None:
    own = plan(data, folder / str(number) / "way")
    manifest = make_in_store(own, f"file://{folder}/there", partial(make_shards, part=(number, 4)))
    return manifest.digest if manifest else None


def test_a_set_that_another_part_finishes_after_it_was_missing_is_taken(
    data: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, store = f"file://{tmp_path}/there", type(fsspec.filesystem("file"))
    other = plan(data, tmp_path / "other" / "way")
    real = store.ls

    def finish_after(self: Any, path: str, detail: bool = False, **more: Any) -> Any:
        listed = real(self, path, detail=detail, **more)
        if path.endswith(".progress") and not detail:
            monkeypatch.undo()
            make_in_store(other, url, partial(make_shards, part=(1, 2)))
        return listed

    monkeypatch.setattr(store, "ls", finish_after)
    made = make_in_store(plan(data, tmp_path / "way"), url, partial(make_shards, part=(0, 2)))
    assert made == Manifest.load(tmp_path / "whole")
    assert stored(url) == whole


def test_parts_at_the_same_time_make_the_same_set(data: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    digest = Manifest.load(tmp_path / "whole").digest
    for attempt in range(6):
        folder = tmp_path / str(attempt)
        digests = set(each_done(partial(one_part, data, folder), range(4), 4))
        assert digest in digests
        assert digests <= {digest, None}
        assert stored(f"file://{folder}/there") == whole


@pytest.mark.parametrize("fail_at", ["faces-000001.tar", "faces-000002.idx", "index.npy", "manifest.json"])
def test_a_store_that_refuses_a_file_has_no_manifest_and_is_gone_on_with(
    data: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, fail_at: str
) -> None:
    url, store = f"file://{tmp_path}/there", type(fsspec.filesystem("file"))
    real, sent = store.put_file, []

    def put(self: Any, here: str, there: str, **more: Any) -> None:
        sent.append(Path(there).name)
        if there.endswith(fail_at) and sent.count(fail_at) == 1:
            raise OSError(5, "Input/output error")
        real(self, here, there, **more)

    monkeypatch.setattr(store, "put_file", put)
    with pytest.raises(NotWrittenError, match=f"{fail_at}: not written: Input/output error"):
        make_in_store(plan(data, tmp_path / "way"), url, make_shards)
    assert "manifest.json" not in stored(url)
    make_in_store(plan(data, tmp_path / "way"), url, make_shards)
    assert stored(url) == whole
    assert sent.count("faces-000000.tar") == 1  # what was there is not sent again


def test_a_store_that_keeps_half_a_file_has_no_manifest_and_is_gone_on_with(
    data: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, store = f"file://{tmp_path}/there", type(fsspec.filesystem("file"))
    real = store.put_file

    def put(self: Any, here: str, there: str, **more: Any) -> None:
        real(self, here, there, **more)
        if there.endswith("faces-000001.tar"):
            Path(there).write_bytes(b"half")

    monkeypatch.setattr(store, "put_file", put)
    with pytest.raises(NotWrittenError, match=r"faces-000001\.tar: not written: got 4 bytes, wanted \d+"):
        make_in_store(plan(data, tmp_path / "way"), url, make_shards)
    monkeypatch.undo()
    assert "faces-000001.tar" not in [path.name for path in (tmp_path / "there").iterdir()]
    make_in_store(plan(data, tmp_path / "way"), url, make_shards)
    assert stored(url) == whole


class LibraryError(Exception):
    """What a store's library may raise that is no `OSError`."""


@pytest.mark.parametrize("method", ["exists", "makedirs", "pipe_file", "glob", "put_file", "mv"])
def test_whatever_a_store_raises_is_named_with_its_place(
    data: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def fail(*_args: Any, **_more: Any) -> None:
        raise LibraryError("no credentials")

    url = f"file://{tmp_path}/there"
    monkeypatch.setattr(type(fsspec.filesystem("file")), method, fail)
    with pytest.raises(NotWrittenError, match=rf"^{url}.*: not (read|written): no credentials$"):
        make_in_store(plan(data, tmp_path / "way"), url, make_shards)
    monkeypatch.undo()
    make_in_store(plan(data, tmp_path / "way"), url, make_shards)
    assert stored(url) == whole


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


def test_parts_of_parquet_need_nothing_in_common_but_the_store(data: Path, tmp_path: Path) -> None:
    write_parquet(data / "parquet")
    made = []
    for part in (1, 0):
        folder = tmp_path / f"machine {part}" / "way"
        own = make_plan(open_source(data / "parquet"), folder, seed=1, samples_per_tar=3, size=None)
        made.append(make_in_store(own, f"file://{tmp_path}/there", partial(make_set, part=(part, 2))))
    alone = make_plan(open_source(data / "parquet"), tmp_path / "whole", seed=1, samples_per_tar=3, size=None)
    assert made == [None, make_set(alone)]
    assert stored(f"file://{tmp_path}/there") == snapshot(tmp_path / "whole")


def test_parquet_goes_to_a_store_by_way_of_its_own_order(data: Path, tmp_path: Path) -> None:
    write_parquet(data / "parquet")
    made = [
        make_plan(open_source(data / "parquet"), tmp_path / name, seed=1, samples_per_tar=3, size=None)
        for name in ("way", "whole")
    ]
    make = partial(make_set, workers=1, part=(0, 1), progress=lambda _samples: None)
    make_in_store(made[0], f"file://{tmp_path}/there", make)
    make(made[1])
    assert stored(f"file://{tmp_path}/there") == snapshot(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there", "whole"]
