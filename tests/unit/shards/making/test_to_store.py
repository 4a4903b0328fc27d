"""Sets written straight to a store: the same bytes as on a disk, whoever writes them and however often one stops."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline.files import NotWrittenError
from pipeline.shards.format.manifest import Manifest, ShardError
from pipeline.shards.making.build import make_shards
from pipeline.shards.making.plan import Plan, make_plan
from pipeline.shards.making.sequential import make_set
from pipeline.shards.making.to_store import make_in_store
from pipeline.shards.sources.detect import open_source
from pipeline.shards.sources.folder import scan_folder
from pipeline.shards.workers import each_done
from tests.shards import noise, snapshot, write_parquet, write_ten_faces


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten faces of three people in folders."""
    root = tmp_path_factory.mktemp("data")
    write_ten_faces(root / "folders")
    return root


def plan(data: Path, out: Path, seed: int = 1) -> Plan:
    return make_plan(scan_folder(data / "folders"), out, seed=seed, samples_per_tar=3, size=None)


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
