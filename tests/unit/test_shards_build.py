"""From a folder of faces to shards: the bytes, both readers, every bad input, and runs that are cut short."""

import errno
import hashlib
import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from pipeline.shards.build import make_shards
from pipeline.shards.index import open_index
from pipeline.shards.manifest import Manifest, ShardError
from pipeline.shards.one_tar import Written
from pipeline.shards.plan import Plan, make_plan, samples_in
from pipeline.shards.shuffle import permutation
from pipeline.shards.sources.folder import scan_folder
from pipeline.shards.workers import each_done

HEIGHT, WIDTH = 20, 16


def face(number: int, kind: str = "JPEG", height: int = HEIGHT, width: int = WIDTH) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """7 people with 1 to 7 images: 28, one of them a PNG."""
    root = tmp_path / "faces"
    for person in range(7):
        folder = root / f"person {person}"
        folder.mkdir(parents=True)
        for number in range(person + 1):
            kind = "PNG" if (person, number) == (3, 1) else "JPEG"
            (folder / f"{number}.{'png' if kind == 'PNG' else 'JPG'}").write_bytes(face(10 * person + number, kind))
    return root


def plan(root: Path, out: Path, seed: int = 1, per_tar: int = 6, size: tuple[int, int] | None = None) -> Plan:
    return make_plan(scan_folder(root), out, seed=seed, samples_per_tar=per_tar, size=size)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def rejected(folder: Path) -> dict[str, str]:
    header, *lines = (folder / "rejected.tsv").read_text().splitlines()
    assert header == "path\treason"
    return dict(line.split("\t") for line in lines)


def test_every_image_is_in_the_tars_once_with_its_bytes_label_and_key(faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = make_shards(plan(faces, out))
    assert manifest == Manifest.load(out)
    assert (manifest.samples, manifest.identities, manifest.set_aside) == (28, 7, 0)
    assert (manifest.image_height, manifest.image_width) == (HEIGHT, WIDTH)
    assert [tar.samples for tar in manifest.tars] == [5, 6, 5, 6, 6]
    identities = (out / "identities.txt").read_text().splitlines()
    assert identities == [f"person {i}" for i in range(7)]

    listing = [p for folder in sorted(faces.iterdir()) for p in sorted(folder.iterdir())]
    wanted = [listing[i] for i in permutation(28, 1)]
    rows = open_index(out, manifest)
    for number, (path, row) in enumerate(zip(wanted, rows, strict=True)):
        tar_number = int(np.searchsorted(manifest.first_rows, number, side="right")) - 1
        tar = (out / manifest.tars[tar_number].name).read_bytes()
        assert tar[row["offset"] : row["offset"] + row["size"]] == path.read_bytes()
        assert identities[row["label"]] == path.parent.name
        extension = "png" if path.suffix == ".png" else "jpg"
        with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
            members = {m.name: archive.extractfile(m).read() for m in archive if m.name.startswith(f"{number:012d}")}
        assert members == {
            f"{number:012d}.{extension}": path.read_bytes(),
            f"{number:012d}.cls": str(row["label"]).encode(),
            f"{number:012d}.json": json.dumps({"key": f"{path.parent.name}/{path.name}"}).encode(),
        }


def test_digests_are_those_of_the_files(faces: Path, tmp_path: Path) -> None:
    manifest = make_shards(plan(faces, tmp_path / "out"))
    files = snapshot(tmp_path / "out")
    for tar in manifest.tars:
        assert tar.bytes == len(files[tar.name])
        assert tar.sha256 == hashlib.sha256(files[tar.name]).hexdigest()
    assert manifest.identities_sha256 == hashlib.sha256(files["identities.txt"]).hexdigest()
    assert manifest.index_sha256 == hashlib.sha256(files["index.npy"]).hexdigest()


# webdataset leaves closing its tars to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_webdataset_reads_the_tars(faces: Path, tmp_path: Path) -> None:
    manifest = make_shards(plan(faces, tmp_path / "out"))
    urls = [str(tmp_path / "out" / tar.name) for tar in manifest.tars]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert len(samples) == 28
    assert [s["cls"] for s in samples] == open_index(tmp_path / "out", manifest)["label"].tolist()
    for sample in samples:
        assert (faces / sample["json"]["key"]).read_bytes()


def test_dali_reads_the_tars_by_the_index_beside_them(faces: Path, tmp_path: Path) -> None:
    dali = pytest.importorskip("nvidia.dali")
    out = tmp_path / "out"
    manifest = make_shards(plan(faces, out))

    @dali.pipeline_def(batch_size=28, num_threads=1, device_id=None)
    def pipeline() -> tuple:
        image, label = dali.fn.readers.webdataset(
            paths=[str(out / tar.name) for tar in manifest.tars],
            index_paths=[str(out / tar.name.replace(".tar", ".idx")) for tar in manifest.tars],
            ext=["jpg;png", "cls"],
        )
        return dali.fn.decoders.image(image, device="cpu"), label

    pipe = pipeline()
    pipe.build()
    images, labels = pipe.run()
    assert images.shape() == [(HEIGHT, WIDTH, 3)] * 28
    got = [int(bytes(labels.at(i))) for i in range(28)]
    assert got == open_index(out, manifest)["label"].tolist()


@pytest.mark.skipif(importlib.util.find_spec("wds2idx") is None, reason="NVIDIA's wds2idx comes with DALI")
def test_the_dali_index_is_byte_for_byte_that_of_wds2idx(faces: Path, tmp_path: Path) -> None:
    manifest = make_shards(plan(faces, tmp_path / "out"))
    for tar in manifest.tars:
        path = tmp_path / "out" / tar.name
        theirs = tmp_path / "theirs.idx"
        subprocess.run([sys.executable, "-m", "wds2idx", path, theirs], check=True, capture_output=True)
        assert path.with_suffix(".idx").read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("workers", [2, 3])
def test_the_bytes_do_not_depend_on_workers_place_or_file_times(faces: Path, tmp_path: Path, workers: int) -> None:
    make_shards(plan(faces, tmp_path / "one"))
    elsewhere = tmp_path / "elsewhere" / "copy"
    shutil.copytree(faces, elsewhere, copy_function=shutil.copyfile)
    os.utime(next(elsewhere.rglob("*.JPG")), (1, 1))
    make_shards(plan(elsewhere, tmp_path / "many"), workers=workers)
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "many")


def test_another_seed_gives_another_order_of_the_same_images(faces: Path, tmp_path: Path) -> None:
    first = make_shards(plan(faces, tmp_path / "1"))
    second = make_shards(plan(faces, tmp_path / "2", seed=2))
    assert first.digest != second.digest
    sizes = [sorted(open_index(tmp_path / n, m)["size"]) for n, m in (("1", first), ("2", second))]
    assert sizes[0] == sizes[1]


def test_batches_inside_a_tar_do_not_show(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (faces / "person 4" / "1.JPG").write_text("bad")
    make_shards(plan(faces, tmp_path / "one", per_tar=28))
    monkeypatch.setattr("pipeline.shards.one_tar.BATCH", 1)
    make_shards(plan(faces, tmp_path / "many", per_tar=28))
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "many")


def test_progress_counts_every_file(faces: Path, tmp_path: Path) -> None:
    (faces / "person 6" / "0.JPG").write_text("bad")
    for workers in (1, 2):
        seen: list[Written] = []
        manifest = make_shards(plan(faces, tmp_path / str(workers)), workers=workers, progress=seen.append)
        counted = tuple(map(sum, zip(*seen, strict=True)))
        assert counted == (28, sum(tar.bytes for tar in manifest.tars), manifest.set_aside)
        assert counted[2] == 1


def test_tars_have_about_the_size_that_is_asked_for(faces: Path, tmp_path: Path) -> None:
    source = scan_folder(faces)
    (faces / "person 6" / "6.JPG").unlink()  # it is listed, and not counted
    per_tar = samples_in(source, 30_000)
    made = make_plan(source, tmp_path / "out", seed=0, samples_per_tar=per_tar, size=None)
    sizes = [tar.bytes for tar in make_shards(made).tars]
    assert len(sizes) > 2
    assert all(20_000 <= size <= 30_000 + 20 * 512 for size in sizes)
    assert samples_in(source, 1) == 1


# --- bad input ---------------------------------------------------------------------------------------------


def test_bad_files_are_set_aside_counted_and_named(faces: Path, tmp_path: Path) -> None:
    clean = make_shards(plan(faces, tmp_path / "clean"))
    person = faces / "person 6"
    (person / "small.jpg").write_bytes(face(1, height=10, width=9))
    (person / "cut.jpg").write_bytes(face(2)[:-20])
    (person / "text.jpg").write_text("no image")
    (person / "empty.jpg").touch()
    (person / "notes.txt").touch()
    (person / "deeper").mkdir()
    (person / ".hidden.jpg").touch()
    (person / "gone.jpg").symlink_to("nowhere")
    (faces / "nobody").mkdir()
    (faces / "all bad").mkdir()
    (faces / "all bad" / "x.jpg").touch()
    (faces / "README").touch()
    manifest = make_shards(plan(faces, tmp_path / "out", size=(HEIGHT, WIDTH)))
    assert rejected(tmp_path / "out") == {
        "README": "not in an identity folder",
        "all bad": "identity left empty",
        "all bad/x.jpg": "empty file",
        "nobody": "identity without images",
        "person 6/cut.jpg": "truncated: the JPEG has no end marker",
        "person 6/deeper": "not a file",
        "person 6/empty.jpg": "empty file",
        "person 6/gone.jpg": "not a file",
        "person 6/notes.txt": "not named .jpg, .jpeg or .png",
        "person 6/small.jpg": f"wrong size: got 10x9, wanted {HEIGHT}x{WIDTH}",
        "person 6/text.jpg": "not a JPEG or PNG",
    }
    assert manifest.set_aside == 11
    assert manifest.samples == clean.samples
    # An identity all of whose images are bad keeps its label, since labels are in the tars by then.
    assert manifest.identities == clean.identities + 1
    labels = open_index(tmp_path / "out", manifest)["label"]
    assert sorted(set(labels.tolist())) == list(range(1, 8))


@pytest.mark.parametrize(("fault", "reason"), [(errno.EACCES, "Permission denied"), (errno.EIO, "Input/output error")])
def test_an_unreadable_file_is_set_aside(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int, reason: str
) -> None:
    fail_to_open(monkeypatch, "person 1/0.JPG", fault)
    make_shards(plan(faces, tmp_path / "out"))
    assert rejected(tmp_path / "out") == {"person 1/0.JPG": f"unreadable: {reason}"}


def test_a_source_that_is_gone_ends_the_run(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_to_open(monkeypatch, "person 1/0.JPG", errno.ESTALE)
    with pytest.raises(ShardError, match=r"person 1/0\.JPG: Stale file handle"):
        make_shards(plan(faces, tmp_path / "out"))


def fail_to_open(monkeypatch: pytest.MonkeyPatch, ending: str, fault: int) -> None:
    """Tests may run as root, who may read everything, so the system's answer is set here."""

    def opened(path: str, *args: int, real: Callable[..., int] = os.open, **more: int) -> int:
        if str(path).endswith(ending):
            raise OSError(fault, os.strerror(fault))
        return real(path, *args, **more)

    monkeypatch.setattr("pipeline.shards.sources.files.os.open", opened)


def test_a_file_gone_since_the_listing_is_set_aside(faces: Path, tmp_path: Path) -> None:
    planned = plan(faces, tmp_path / "out")
    (faces / "person 1" / "0.JPG").unlink()
    make_shards(planned)
    assert rejected(tmp_path / "out") == {"person 1/0.JPG": "unreadable: No such file or directory"}


def test_a_tar_whose_files_are_all_set_aside_is_left_out(faces: Path, tmp_path: Path) -> None:
    (faces / "person 2" / "0.JPG").write_text("bad")
    manifest = make_shards(plan(faces, tmp_path / "out", per_tar=1))
    assert (manifest.samples, len(manifest.tars), manifest.set_aside) == (27, 27, 1)
    assert len(list((tmp_path / "out").glob("*.tar"))) == len(list((tmp_path / "out").glob("*.idx"))) == 27


def empty_source(_root: Path) -> None:
    """Leave the folder as it is."""


def only_files(root: Path) -> None:
    (root / "a.jpg").write_bytes(face(1))


def only_empty_identities(root: Path) -> None:
    (root / "a").mkdir()
    (root / "b").mkdir()
    (root / "b" / "notes.txt").touch()


def only_bad_images(root: Path) -> None:
    (root / "a").mkdir()
    (root / "a" / "1.jpg").write_text("bad")
    (root / "a" / "2.jpg").write_text("")


def unprintable_name(root: Path) -> None:
    (root / "a\nb").mkdir()
    (root / "a\nb" / "1.jpg").write_bytes(face(1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (empty_source, "got no identity folders, wanted one folder of images a person"),
        (only_files, "got no identity folders"),
        (only_empty_identities, "got 2 identity folders without images, wanted .jpg or .png"),
        (only_bad_images, "no readable image in 2 files; the first: a/1.jpg: not a JPEG or PNG"),
        (unprintable_name, r"identity 'a\\nb': wanted a printable UTF-8 name"),
        (lambda root: root.rmdir(), "got no folder, wanted a folder of identity folders"),
    ],
)
def test_a_source_without_faces_is_refused(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    root = tmp_path / "source"
    root.mkdir()
    make(root)
    with pytest.raises(ShardError, match=message) as caught:
        plan(root, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_everything_set_aside_is_an_error_with_its_reasons(faces: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"every file was set aside; see rejected\.tsv"):
        make_shards(plan(faces, tmp_path / "out", size=(1, 1)))
    assert len(rejected(tmp_path / "out")) == 28 + 7
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_no_samples_per_tar_is_refused(faces: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="samples per tar: got 0, wanted at least 1"):
        plan(faces, tmp_path / "out", per_tar=0)


# --- going on, and refusing to mix -------------------------------------------------------------------------


def test_a_finished_set_is_left_alone(faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_shards(plan(faces, out))
    times = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    assert make_shards(plan(faces, out)) == Manifest.load(out)
    assert {p: p.stat().st_mtime_ns for p in out.iterdir()} == times


@pytest.mark.parametrize("finished", [True, False])
def test_shards_of_another_plan_are_refused_with_what_differs(faces: Path, tmp_path: Path, finished: bool) -> None:
    out = tmp_path / "out"
    if finished:
        make_shards(plan(faces, out))
    else:
        interrupt(plan(faces, out), after=2)
    before = snapshot(out)
    with pytest.raises(ShardError, match=r"holds other shards \(seed: got 1, wanted 2\)"):
        make_shards(plan(faces, out, seed=2))
    with pytest.raises(ShardError, match=r"samples_per_tar: got 6, wanted 7"):
        make_shards(plan(faces, out, per_tar=7))
    with pytest.raises(ShardError, match=r"image_height: got 20, wanted 9, image_width: got 16, wanted 8\)"):
        make_shards(plan(faces, out, size=(9, 8)))
    (faces / "person 0" / "new.jpg").write_bytes(face(99))
    with pytest.raises(ShardError, match=r"source_sha256: got \w+, wanted \w+\)"):
        make_shards(plan(faces, out))
    assert snapshot(out) == before


def test_a_folder_of_something_else_is_refused(faces: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(ShardError, match="is not empty and holds no shards"):
        make_shards(plan(faces, tmp_path / "out"))


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
    make_shards(plan(faces, tmp_path / "whole"))
    out = tmp_path / "out"
    interrupt(plan(faces, out), after=2)
    assert sorted(p.name for p in out.glob("*.tar")) == ["faces-000000.tar", "faces-000001.tar"]
    assert not list(out.rglob("*.part"))
    kept = (out / "faces-000000.tar").stat().st_mtime_ns
    make_shards(plan(faces, out))
    assert (out / "faces-000000.tar").stat().st_mtime_ns == kept
    assert snapshot(out) == snapshot(tmp_path / "whole")


@pytest.mark.parametrize("fault", ["changed", "missing", "no idx", "half idx", "empty record", "half rows", "no rows"])
def test_a_tar_that_is_not_as_recorded_is_made_again(faces: Path, tmp_path: Path, fault: str) -> None:
    make_shards(plan(faces, tmp_path / "whole"))
    out = tmp_path / "out"
    interrupt(plan(faces, out), after=2)
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
    make_shards(plan(faces, out))
    assert snapshot(out) == snapshot(tmp_path / "whole")


@pytest.mark.parametrize("part", [(0, 1), (1, 2)])
def test_all_is_on_the_disk_before_the_manifest_or_the_end_of_a_part(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: tuple[int, int]
) -> None:
    synced: list[str] = []

    def noted(descriptor: int, real: Callable[[int], None] = os.fsync) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name.removesuffix(".part"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    out = tmp_path / "out"
    make_shards(plan(faces, out), part=part)
    names = {path.name for path in out.iterdir() if path.is_file()}
    assert len(names) == (5 * 2 + 4 if part == (0, 1) else 2 * 2)
    before = synced[: synced.index("manifest.json")] if part == (0, 1) else synced
    assert names - {"manifest.json"} <= set(before)
    assert before[-1] == "out"  # the names too


def test_a_run_killed_as_it_claimed_the_folder_goes_on(faces: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / ".progress").mkdir(parents=True)
    (tmp_path / "out" / ".progress" / "plan.json.part").write_text("{")
    make_shards(plan(faces, tmp_path / "out"))
    make_shards(plan(faces, tmp_path / "whole"))
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")


def test_a_run_killed_after_its_manifest_is_tidied(faces: Path, tmp_path: Path) -> None:
    make_shards(plan(faces, tmp_path / "out"))
    before = snapshot(tmp_path / "out")
    (tmp_path / "out" / ".progress").mkdir()
    make_shards(plan(faces, tmp_path / "out"))
    assert snapshot(tmp_path / "out") == before
    assert not (tmp_path / "out" / ".progress").exists()


# --- parts -------------------------------------------------------------------------------------------------


def test_parts_written_anywhere_in_any_order_make_the_same_set(faces: Path, tmp_path: Path) -> None:
    make_shards(plan(faces, tmp_path / "whole"))
    out = tmp_path / "out"
    assert make_shards(plan(faces, out), part=(2, 3)) is None
    assert make_shards(plan(faces, out), part=(0, 3), workers=2) is None
    assert make_shards(plan(faces, out), part=(0, 3)) is None  # run again: nothing to do
    assert not (out / "manifest.json").exists()
    assert make_shards(plan(faces, out), part=(1, 3)) == Manifest.load(out)
    assert make_shards(plan(faces, out), part=(2, 3)) == Manifest.load(out)
    assert snapshot(out) == snapshot(tmp_path / "whole")


def one_part(faces: Path, out: Path, number: int) -> str | None:
    manifest = make_shards(plan(faces, out), part=(number, 4))
    return manifest.digest if manifest else None


def test_parts_at_the_same_time_make_the_same_set(faces: Path, tmp_path: Path) -> None:
    whole = make_shards(plan(faces, tmp_path / "whole"))
    for attempt in range(8):
        out = tmp_path / str(attempt)
        digests = set(each_done(partial(one_part, faces, out), range(4), 4))
        assert whole.digest in digests
        assert digests <= {whole.digest, None}
        assert snapshot(out) == snapshot(tmp_path / "whole")


def test_part_of_another_plan_is_refused(faces: Path, tmp_path: Path) -> None:
    make_shards(plan(faces, tmp_path / "out"), part=(0, 2))
    with pytest.raises(ShardError, match="seed: got 1, wanted 9"):
        make_shards(plan(faces, tmp_path / "out", seed=9), part=(1, 2))


# --- workers -----------------------------------------------------------------------------------------------


def square(job: int) -> int:
    return job * job


def fail_at(where: int, job: int) -> int:
    if job == where:
        raise ShardError("job three failed")
    return job


def die_at(where: int, job: int) -> int:
    if job == where:
        os.kill(os.getpid(), signal.SIGKILL)
    return job


@pytest.mark.parametrize("workers", [1, 2, 5, 40])
def test_each_job_is_done_once(workers: int) -> None:
    assert sorted(each_done(square, range(20), workers)) == [i * i for i in range(20)]
    assert list(each_done(square, [], workers)) == []


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_of_a_job_is_raised_here(workers: int) -> None:
    with pytest.raises(ShardError, match="job three failed"):
        list(each_done(partial(fail_at, 3), range(20), workers))


def test_a_worker_that_dies_is_named_not_waited_for() -> None:
    with pytest.raises(ShardError, match="a worker died: got exit code -9, wanted 0"):
        list(each_done(partial(die_at, 3), range(20), 2))


def note_and_wait(folder: Path, job: int) -> None:
    (folder / f"{job}-{os.getpid()}").touch()
    time.sleep(0.05)


def test_closing_the_results_ends_the_workers(tmp_path: Path) -> None:
    results = each_done(partial(note_and_wait, tmp_path), range(1000), 2)
    next(results)
    results.close()
    pids = {int(p.name.split("-")[1]) for p in tmp_path.iterdir()}
    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
