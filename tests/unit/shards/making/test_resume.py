"""Runs that are cut short, run again, or done in parts make the same set; sets of two plans are never mixed."""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pipeline.files import locked, write_file
from pipeline.shards.format.index import open_index
from pipeline.shards.format.manifest import PROGRESS, Manifest, ShardError
from pipeline.shards.making import build, claim, one_tar
from pipeline.shards.making.build import make_shards
from pipeline.shards.making.claim import LISTING
from pipeline.shards.making.one_tar import Written
from pipeline.shards.making.plan import Plan, make_plan
from pipeline.shards.sources.folder import scan_folder
from pipeline.shards.sources.tar_folder import open_tars
from pipeline.shards.workers import each_done
from tests.shards import made, noise, plan_of, snapshot, write_people, write_tar_of


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    return write_people(tmp_path / "faces")


def test_a_finished_set_is_left_alone(faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_shards(plan_of(faces, out))
    times = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    assert make_shards(plan_of(faces, out)) == Manifest.load(out)
    assert {p: p.stat().st_mtime_ns for p in out.iterdir()} == times


@pytest.mark.parametrize("finished", [True, False])
def test_shards_of_another_plan_are_refused_with_what_differs(faces: Path, tmp_path: Path, finished: bool) -> None:
    out = tmp_path / "out"
    if finished:
        make_shards(plan_of(faces, out))
    else:
        interrupt(plan_of(faces, out), after=2)
    before = snapshot(out)
    with pytest.raises(ShardError, match=r"holds other shards \(seed: got 1, wanted 2\)"):
        make_shards(plan_of(faces, out, seed=2))
    with pytest.raises(ShardError, match=r"samples_per_tar: got 6, wanted 7"):
        make_shards(plan_of(faces, out, per_tar=7))
    with pytest.raises(ShardError, match=r"image_height: got 20, wanted 9, image_width: got 16, wanted 8\)"):
        make_shards(plan_of(faces, out, size=(9, 8)))
    (faces / "person 0" / "new.jpg").write_bytes(noise(99))
    with pytest.raises(ShardError, match=r"source_sha256: got \w+, wanted \w+\)"):
        make_shards(plan_of(faces, out))
    assert snapshot(out) == before


def replace_image(faces: Path) -> Path:
    """Another image of the same size in bytes, under the same name and with the old time of modification."""
    path = faces / "person 6" / "3.JPG"
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-10] ^= 1
    aside = path.with_suffix(".new")
    aside.write_bytes(content)
    os.utime(aside, ns=(before.st_atime_ns, before.st_mtime_ns))
    aside.replace(path)
    return path


def test_a_finished_set_of_a_source_that_changed_is_refused_with_counts(faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_shards(plan_of(faces, out))
    time.sleep(0.02)  # more than the file system's clock tick
    path = replace_image(faces)
    with pytest.raises(ShardError, match="holds other shards: 0 samples came, 0 went, 1 changed; choose"):
        make_shards(plan_of(faces, out))
    (faces / "person 5" / "1.JPG").unlink()
    (faces / "person 5" / "new.jpg").write_bytes(noise(99))
    (faces / "person 5" / "newer.jpg").write_bytes(noise(98))
    path.rename(faces / "person 5" / "2.JPG")
    with pytest.raises(ShardError, match=r"source_sha256: got \w+, wanted \w+\): 2 samples came, 2 went, 0 changed;"):
        make_shards(plan_of(faces, out))


def test_an_unfinished_set_of_a_source_that_changed_is_refused_with_counts(faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupt(plan_of(faces, out), after=2)
    (faces / open_tars(out).key(0)).unlink()
    for number in range(3):
        (faces / "person 5" / f"new {number}.jpg").write_bytes(noise(90 + number))
    with pytest.raises(ShardError, match=r"wanted \w+\): 3 samples came, 1 went, 0 changed; choose another folder"):
        make_shards(plan_of(faces, out))
    (out / PROGRESS / LISTING).unlink()  # as an older version left it
    with pytest.raises(ShardError, match=r"wanted \w+\); choose another folder"):
        make_shards(plan_of(faces, out))


@pytest.mark.parametrize("finished", [True, False])
def test_samples_of_another_kind_of_source_are_not_counted_as_changes(
    faces: Path, tmp_path: Path, finished: bool
) -> None:
    made(plan_of(faces, tmp_path / "tars"))
    if finished:
        made(plan_of(faces, tmp_path / "out"))
    else:
        interrupt(plan_of(faces, tmp_path / "out"), after=2)
    other = make_plan(open_tars(tmp_path / "tars"), tmp_path / "out", seed=1, samples_per_tar=6, size=None)
    with pytest.raises(ShardError, match=r"\(source: got folder, wanted tars, source_sha256: got \w+, wanted \w+\); "):
        make_shards(other)


def test_bytes_that_changed_inside_a_large_file_are_noticed(faces: Path, tmp_path: Path) -> None:
    manifest = made(plan_of(faces, tmp_path / "tars"))
    again = make_plan(open_tars(tmp_path / "tars"), tmp_path / "out", seed=1, samples_per_tar=9, size=None)
    make_shards(again)
    time.sleep(0.02)
    rows = open_index(tmp_path / "tars", manifest)
    with (tmp_path / "tars" / manifest.tars[0].name).open("r+b") as tar:
        tar.seek(int(rows["offset"][2] + rows["size"][2]) - 10)
        tar.write(b"!")
    with pytest.raises(ShardError, match="0 samples came, 0 went, 1 changed; choose"):
        make_shards(again)


def test_touched_files_with_the_same_bytes_are_no_change(faces: Path, tmp_path: Path) -> None:
    make_shards(plan_of(faces, tmp_path / "out"))
    time.sleep(0.02)
    for path in faces.rglob("*.JPG"):
        path.touch()
    assert make_shards(plan_of(faces, tmp_path / "out")) == Manifest.load(tmp_path / "out")


def test_an_image_that_can_no_longer_be_read_has_changed_unless_it_never_could(faces: Path, tmp_path: Path) -> None:
    source = scan_folder(faces)
    every = np.arange(len(source.labels))
    (faces / "person 6" / "3.JPG").unlink()
    made(make_plan(source, tmp_path / "out", seed=1, samples_per_tar=6, size=None))
    there = open_tars(tmp_path / "out")
    assert claim.count_changed(source, every, there) == 0
    (faces / "person 5" / "1.JPG").unlink()
    assert claim.count_changed(source, every, there) == 1


def test_an_image_is_compared_with_all_that_have_its_key(tmp_path: Path) -> None:
    """As two sets that were joined may have a key each."""
    for number in range(2):
        members = [("1.jpg", noise(number)), ("1.cls", b"0"), ("1.json", b'{"key": "ann/1.jpg"}')]
        write_tar_of(tmp_path / f"{number}.tar", members)
    source = open_tars(tmp_path)
    assert [source.key(sample) for sample in range(2)] == ["ann/1.jpg"] * 2
    assert claim.count_changed(source, np.arange(2), source) == 0


def test_a_resumed_run_writes_tars_of_changed_samples_again(faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupt(plan_of(faces, out), after=4)
    time.sleep(0.02)
    replace_image(faces)
    make_shards(plan_of(faces, out))
    make_shards(plan_of(faces, tmp_path / "whole"))
    assert snapshot(out) == snapshot(tmp_path / "whole")


def test_a_folder_of_something_else_is_refused(faces: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(ShardError, match="is not empty and holds no shards"):
        make_shards(plan_of(faces, tmp_path / "out"))


def interrupt(planned: Plan, after: int) -> None:
    """Ctrl-C after some tars."""

    def stop(_written: Written) -> None:
        seen.append(1)
        if len(seen) == after:
            raise KeyboardInterrupt

    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        make_shards(planned, progress=stop)


def test_an_interrupted_run_keeps_its_tars_and_goes_on(faces: Path, tmp_path: Path) -> None:
    make_shards(plan_of(faces, tmp_path / "whole"))
    out = tmp_path / "out"
    interrupt(plan_of(faces, out), after=2)
    assert sorted(p.name for p in out.glob("*.tar")) == ["faces-000000.tar", "faces-000001.tar"]
    assert not list(out.rglob("*.part"))
    kept = (out / "faces-000000.tar").stat().st_mtime_ns
    make_shards(plan_of(faces, out))
    assert (out / "faces-000000.tar").stat().st_mtime_ns == kept
    assert snapshot(out) == snapshot(tmp_path / "whole")


@pytest.mark.parametrize("fault", ["changed", "missing", "no idx", "half idx", "empty record", "half rows", "no rows"])
def test_a_tar_that_is_not_as_recorded_is_made_again(faces: Path, tmp_path: Path, fault: str) -> None:
    make_shards(plan_of(faces, tmp_path / "whole"))
    out = tmp_path / "out"
    interrupt(plan_of(faces, out), after=2)
    tar = out / "faces-000000.tar"
    if fault == "changed":
        content = bytearray(tar.read_bytes())
        content[700] ^= 1
        tar.write_bytes(content)
    elif fault == "half idx":
        os.truncate(tar.with_suffix(".idx"), 30)
    elif fault == "empty record":
        os.truncate(out / ".progress" / "faces-000000.json", 0)
    elif fault == "half rows":
        os.truncate(out / ".progress" / "faces-000000.npy", 140)
    elif fault == "no rows":
        (out / ".progress" / "faces-000000.npy").unlink()
    else:
        (tar if fault == "missing" else tar.with_suffix(".idx")).unlink()
    make_shards(plan_of(faces, out))
    assert snapshot(out) == snapshot(tmp_path / "whole")


@pytest.mark.parametrize("part", [(0, 1), (1, 2)])
def test_all_is_on_the_disk_before_the_manifest_or_the_end_of_a_part(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: tuple[int, int]
) -> None:
    synced: list[str] = []

    def noted(descriptor: int, real: Callable[[int], None] = os.fsync) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        synced.append(re.sub(r"\.\w+\.part$", "", name))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    out = tmp_path / "out"
    make_shards(plan_of(faces, out), part=part)
    names = {path.name for path in out.iterdir() if path.is_file()}
    assert len(names) == (5 * 2 + 4 if part == (0, 1) else 2 * 2)
    before = synced[: synced.index("manifest.json")] if part == (0, 1) else synced
    assert names - {"manifest.json"} <= set(before)
    assert before[-1] == "out"  # the names too


def test_a_run_killed_as_it_claimed_the_folder_goes_on(faces: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / ".progress").mkdir(parents=True)
    (tmp_path / "out" / ".progress" / "plan.json.part").write_text("{")
    make_shards(plan_of(faces, tmp_path / "out"))
    make_shards(plan_of(faces, tmp_path / "whole"))
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")


def test_a_run_killed_after_its_manifest_is_tidied(faces: Path, tmp_path: Path) -> None:
    make_shards(plan_of(faces, tmp_path / "out"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out" / ".progress").mkdir()
    make_shards(plan_of(faces, tmp_path / "out"))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    assert not (tmp_path / "out" / ".progress").exists()


def test_parts_written_anywhere_in_any_order_make_the_same_set(faces: Path, tmp_path: Path) -> None:
    make_shards(plan_of(faces, tmp_path / "whole"))
    out = tmp_path / "out"
    assert make_shards(plan_of(faces, out), part=(2, 3)) is None
    assert make_shards(plan_of(faces, out), part=(0, 3), workers=2) is None
    assert make_shards(plan_of(faces, out), part=(0, 3)) is None  # run again: nothing to do
    assert not (out / "manifest.json").exists()
    assert make_shards(plan_of(faces, out), part=(1, 3)) == Manifest.load(out)
    assert make_shards(plan_of(faces, out), part=(2, 3)) == Manifest.load(out)
    assert snapshot(out) == snapshot(tmp_path / "whole")


def one_part(faces: Path, out: Path, number: int) -> str | None:
    manifest = make_shards(plan_of(faces, out), part=(number, 4))
    return manifest.digest if manifest else None


def test_parts_at_the_same_time_make_the_same_set(faces: Path, tmp_path: Path) -> None:
    whole = made(plan_of(faces, tmp_path / "whole"))
    for attempt in range(8):
        out = tmp_path / str(attempt)
        digests = set(each_done(partial(one_part, faces, out), range(4), 4))
        assert whole.digest in digests
        assert digests <= {whole.digest, None}
        assert snapshot(out) == snapshot(tmp_path / "whole")


def test_two_processes_on_one_part_make_the_same_set(faces: Path, tmp_path: Path) -> None:
    """A requeued task, or a pod that was replaced and still runs."""
    make_shards(plan_of(faces, tmp_path / "whole"))
    whole = snapshot(tmp_path / "whole")
    for attempt in range(12):
        out = tmp_path / str(attempt)
        digests = set(each_done(partial(one_part, faces, out), [0, 0, 0], 3))
        assert len(digests) <= 2  # None if it saw another part missing
        for part in (1, 2, 3):
            one_part(faces, out, part)
        assert snapshot(out) == whole


def test_a_set_that_another_process_finishes_meanwhile_is_taken(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other finishes, and removes the lock's folder, just before this one makes it or just before it locks."""
    for moment in ("make_folder", "locked"):
        out = tmp_path / moment
        real = getattr(claim, moment)

        def finish_first(path: Path, real: Callable[[Path], object] = real, out: Path = out) -> object:
            monkeypatch.undo()
            make_shards(plan_of(faces, out))
            return real(path)

        monkeypatch.setattr(claim, moment, finish_first)
        assert make_shards(plan_of(faces, out)) == Manifest.load(out)
        assert not (out / ".progress").exists()
        assert len(list(out.iterdir())) == 14


def test_a_set_that_another_process_finishes_while_this_one_waits_to_is_taken(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    @contextmanager
    def finish_first(path: Path) -> Iterator[None]:
        monkeypatch.undo()
        with locked(path):
            make_shards(plan_of(faces, out))
            yield

    monkeypatch.setattr(build, "locked", finish_first)
    assert make_shards(plan_of(faces, out)) == Manifest.load(out)


def test_a_set_that_another_process_finishes_while_a_record_is_read_is_taken(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It removes the records, of which this one has read one and asks for the time."""
    out = tmp_path / "out"
    interrupt(plan_of(faces, out), after=2)
    real = one_tar.read_record

    def finish_first(plan: Plan, tar: int) -> one_tar.TarRecord:
        monkeypatch.undo()
        record = real(plan, tar)
        make_shards(plan_of(faces, out))
        return record

    monkeypatch.setattr(one_tar, "read_record", finish_first)
    assert make_shards(plan_of(faces, out)) == Manifest.load(out)
    assert not (out / ".progress").exists()


def write_often(folder: Path, number: int) -> int:
    sizes = set()
    for _ in range(50):
        write_file(folder / "same", bytes([number]) * 100_000)
        content = (folder / "same").read_bytes()
        sizes.add((len(content), len(set(content))))
    return 1 if sizes == {(100_000, 1)} else 0


def test_a_file_with_two_writers_is_whole_at_any_time(tmp_path: Path) -> None:
    assert list(each_done(partial(write_often, tmp_path), [1, 2], 2)) == [1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["same"]


def test_what_a_killed_writer_left_is_removed(faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupt(plan_of(faces, out), after=1)
    for name in ("faces-000003.tar.0123456789ab.part", "index.npy.0123456789ab.part"):
        (out / name).write_bytes(b"half")
    make_shards(plan_of(faces, out))
    make_shards(plan_of(faces, tmp_path / "whole"))
    assert snapshot(out) == snapshot(tmp_path / "whole")


def test_part_of_another_plan_is_refused(faces: Path, tmp_path: Path) -> None:
    make_shards(plan_of(faces, tmp_path / "out"), part=(0, 2))
    with pytest.raises(ShardError, match="seed: got 1, wanted 9"):
        make_shards(plan_of(faces, tmp_path / "out", seed=9), part=(1, 2))
