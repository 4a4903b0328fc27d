"""`stages/shard.py` as users run it: by path, from elsewhere, killed, interrupted, on a full disk."""

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.stop import EXIT_REFUSED, EXIT_UNSAVED
from pipeline.shards.format.manifest import Manifest
from tests.full_disk import SmallDisk, small_disk
from tests.ports import free_port

STAGE = Path(__file__).parents[2] / "stages" / "shard.py"
# Large payloads make the writing, not the start of Python, the time in which a kill arrives.
HEADER = bytes.fromhex("ffd8ffc0000b080010001001011100")
PEOPLE, EACH = 30, 20


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 files that look like JPEGs of 16x16 to a header reader, 20 KB each."""
    root = tmp_path_factory.mktemp("faces")
    noise = np.random.default_rng(0)
    for person in range(PEOPLE):
        folder = root / f"id{person:03d}"
        folder.mkdir()
        for number in range(EACH):
            (folder / f"{number}.jpg").write_bytes(HEADER + noise.bytes(20_000) + b"\xff\xd9")
    return root


@pytest.fixture(scope="module")
def whole(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole")
    assert shard(faces, out).returncode == 0
    return snapshot(out)


def command(faces: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, str(STAGE), str(faces), str(out), "--samples-per-tar", "40", *more]


def shard(faces: Path, out: Path, *more: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(faces, out, *more), capture_output=True, text=True, cwd="/", check=False, **options)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_one_line_says_what_was_made(faces: Path, tmp_path: Path) -> None:
    done = shard(faces, tmp_path / "out")
    assert done.returncode == 0
    assert done.stderr == ""
    assert "600 samples of 30 identities, 16x16, in 15 tars" in done.stdout
    assert "0 files set aside" in done.stdout
    assert shard(faces, tmp_path / "out").stdout == done.stdout


def test_parts_make_the_same_set(faces: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    done = [shard(faces, tmp_path / "out", "--part", f"{part}/2") for part in (1, 0)]
    assert "part 1/2 is done, the set is not" in done[0].stdout
    assert "600 samples" in done[1].stdout
    assert snapshot(tmp_path / "out") == whole


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--size", "112"], "got '112', wanted HEIGHTxWIDTH such as 112x96"),
        (["--samples-per-tar", "0"], "shard: samples per tar: got 0, wanted at least 1"),
        (["--fit", "crop"], "shard: --fit crop: wanted --size HxW, the size to fit images to"),
        (["--part", "3/3"], "got '3/3', wanted I/N with I from 0 to N - 1"),
        (["--workers", "0"], "got '0', wanted a whole number of at least 1"),
    ],
)
def test_a_wrong_option_is_named(faces: Path, tmp_path: Path, more: list[str], message: str) -> None:
    done = shard(faces, tmp_path / "out", *more)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_is_one_line_and_exit_code_65(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = shard(tmp_path / "empty", tmp_path / "out")
    assert done.returncode == EXIT_REFUSED
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"shard: {tmp_path}/empty: got no identity folders")


def test_too_many_rejected_samples_are_no_success(tmp_path: Path) -> None:
    for number in range(100):
        content = HEADER + bytes([number]) + b"\xff\xd9" if number >= 2 else b"no image"
        (tmp_path / "faces" / f"id{number % 5}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "faces" / f"id{number % 5}" / f"{number}.jpg").write_bytes(content)
    done = shard(tmp_path / "faces", tmp_path / "out", "--workers", "1")
    assert done.returncode == 3
    assert done.stderr.endswith(
        "2 of 100 samples set aside (2.0%), wanted at most 1.0% (--max-rejected): 2 × not a JPEG or PNG (id0/0.jpg)\n"
    )
    assert not (tmp_path / "out" / "manifest.json").exists()
    done = shard(tmp_path / "faces", tmp_path / "out", "--max-rejected", "2%")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "set aside: 2 × not a JPEG or PNG (id0/0.jpg)"
    again = shard(tmp_path / "faces", tmp_path / "out")
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert "already complete, nothing done" in again.stderr


def test_samples_rejected_as_they_are_listed_are_told_with_their_place_and_reason(tmp_path: Path) -> None:
    (tmp_path / "faces" / "ann").mkdir(parents=True)
    for name in ("1.jpg", "2.gif", "3.gif"):
        (tmp_path / "faces" / "ann" / name).write_bytes(HEADER)
    done = shard(tmp_path / "faces", tmp_path / "out")
    assert done.returncode == 3
    assert done.stderr.startswith(f"shard: {tmp_path}/faces: 2 of 3 samples set aside (66.7%), wanted at most 1.0%")
    assert "2 × not named as an image" in done.stderr and "(ann/2.gif)" in done.stderr
    assert not (tmp_path / "out").exists()


def test_shards_inside_their_source_are_refused(faces: Path) -> None:
    done = shard(faces, faces / "out")
    assert (done.returncode, done.stderr.count("\n")) == (EXIT_REFUSED, 1)
    assert "lies inside" in done.stderr


def test_runs_killed_at_random_moments_end_in_the_same_bytes(
    faces: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    chance = random.Random(0)
    out = tmp_path / "out"
    cut_short = 0
    for _ in range(50):
        run = subprocess.Popen(command(faces, out, "--workers", "2"), stdout=subprocess.DEVNULL, start_new_session=True)
        wait_for_more(out, chance.randint(1, 3), run)
        time.sleep(chance.uniform(0, 0.02))
        cut_short += run.poll() is None
        with contextlib.suppress(ProcessLookupError):  # it may be over
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        for name, content in snapshot(out).items():
            if name.endswith((".tar", ".idx", ".npy", ".json")) and name in whole:
                assert content == whole[name], f"{name} is not whole"
        if (out / "manifest.json").exists():
            assert shard(faces, out).returncode == 0  # tidies what a kill after the manifest left
            assert snapshot(out) == whole
            shutil.rmtree(out)
    assert cut_short >= 20
    assert shard(faces, out).returncode == 0
    assert snapshot(out) == whole


def test_a_requeued_run_beside_one_that_is_killed_makes_the_same_set(
    faces: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    chance = random.Random(1)
    for attempt in range(4):
        out = tmp_path / str(attempt)
        both = [subprocess.Popen(command(faces, out, "--workers", "1"), stdout=subprocess.DEVNULL) for _ in range(2)]
        wait_for_more(out, chance.randint(1, 5), both[0])
        if attempt % 2:
            both[0].kill()
        codes = [one.wait() for one in both]
        assert codes[1] == 0
        assert snapshot(out) == whole


def wait_for_more(out: Path, tars: int, run: subprocess.Popen[Any]) -> None:
    """Until so many more tars are there, or the run is over."""
    there = len(list(out.glob("*.tar")))
    while run.poll() is None and len(list(out.glob("*.tar*"))) < there + tars:
        time.sleep(0.001)


def test_workers_end_with_a_killed_parent(faces: Path, tmp_path: Path) -> None:
    run = subprocess.Popen(command(faces, tmp_path / "out", "--workers", "2"), start_new_session=True)
    wait_for_more(tmp_path / "out", 1, run)
    run.kill()
    run.wait()
    for _ in range(1000):
        if not living(run.pid):
            return
        time.sleep(0.01)
    pytest.fail("a worker outlived its parent")


def living(group: int) -> list[str]:
    """Processes of a group that are more than zombies, which wait for init to collect them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _parent, of_group = path.read_text().rpartition(")")[2].split()[:3]
            found += [path.parent.name] if int(of_group) == group and state != "Z" else []
    return found


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_leaves_no_half_file_and_says_how_to_resume(
    faces: Path, whole: dict[str, bytes], tmp_path: Path, workers: str
) -> None:
    out = tmp_path / "out"
    run = subprocess.Popen(
        command(faces, out, "--workers", workers), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for_more(out, 1, run)
    os.killpg(run.pid, signal.SIGINT)
    _, errors = run.communicate()
    if run.returncode:  # else it was over before the signal
        assert run.returncode == 130
        assert errors == "shard: stopped; run the same command again to resume\n"
        assert not list(out.rglob("*.part"))
    assert shard(faces, out).returncode == 0
    assert snapshot(out) == whole


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Of 3 MB; 600 samples take 13."""
    with small_disk(tmp_path / "disk", "3m") as disk:
        yield disk


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_full_disk_keeps_the_finished_tars(
    faces: Path, whole: dict[str, bytes], disk: SmallDisk, workers: str
) -> None:
    out = disk.path / "out"
    done = shard(faces, out, "--workers", workers)
    assert done.returncode == EXIT_UNSAVED
    assert done.stderr.count("\n") == 1
    assert ": not written: No space left on device" in done.stderr
    assert not list(out.rglob("*.part"))
    tars = {p.name: p.read_bytes() for p in out.glob("*.tar")}
    assert tars
    assert tars.items() <= whole.items()
    # With room again the same command resumes.
    disk.remount("size=40m")
    assert shard(faces, out, "--workers", workers).returncode == 0
    assert snapshot(out) == whole


def test_a_file_size_limit_is_like_a_full_disk(faces: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    done = shard(faces, tmp_path / "out", preexec_fn=limit)
    assert done.returncode == EXIT_UNSAVED
    assert done.stderr.count("\n") == 1
    assert ": not written: File too large" in done.stderr
    assert not list((tmp_path / "out").rglob("*.part"))


def test_the_manifest_of_the_stage_is_that_of_the_library(whole: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(whole["manifest.json"])
    manifest = Manifest.load(tmp_path)
    assert (manifest.samples, manifest.made.source, manifest.made.samples_per_tar) == (600, "folder", 40)


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(STAGE), *map(str, words)], capture_output=True, text=True, cwd="/", check=False
    )


def test_a_set_is_verified_divided_and_joined(faces: Path, tmp_path: Path) -> None:
    a, b, c, joined = (tmp_path / name for name in "abcj")
    assert shard(faces, a).returncode == 0
    done = run("verify", a)
    # These files have a JPEG's header only, so what decoding finds is right.
    assert (done.returncode, "600 samples in 15 tars" in done.stdout) == (1, True)
    (tmp_path / "test people").write_text("id003\nid007\n")
    assert "560 samples of 28 identities" in run("subset", a, b, "--drop", tmp_path / "test people").stdout
    assert (
        "10 samples of 2 identities"
        in run("subset", a, c, "--keep", tmp_path / "test people", "--max-images", 5).stdout
    )
    assert "570 samples of 30 identities" in run("merge", b, c, joined, "--same-people").stdout
    assert "200 samples of 10 identities" in run("subset", a, tmp_path / "d", "--people", 10).stdout


def test_a_name_that_is_not_in_the_set_is_said(faces: Path, tmp_path: Path) -> None:
    assert shard(faces, tmp_path / "a").returncode == 0
    (tmp_path / "some").write_text("id003\nid999\n")
    done = run("subset", tmp_path / "a", tmp_path / "b", "--drop", tmp_path / "some")
    absent = f"shard: {tmp_path}/some: {tmp_path}/a has no 'id999' (1 of 2 names of the list)\n"
    assert (done.returncode, done.stderr) == (0, absent)
    assert "580 samples of 29 identities" in done.stdout
    done = run("subset", tmp_path / "a", tmp_path / "c", "--keep", tmp_path / "some")
    assert (done.returncode, done.stderr) == (EXIT_REFUSED, absent)
    assert not (tmp_path / "c").exists()


def test_help_names_the_commands() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("make", "verify", "subset", "merge"))


def test_a_source_may_be_a_url_and_a_tar_a_size(faces: Path, tmp_path: Path) -> None:
    done = run("make", f"file://{faces}", tmp_path / "out", "--tar-mb", 2)
    assert "600 samples of 30 identities, 16x16, in 7 tars (13." in done.stdout
    there = f"file://{tmp_path}/there"
    assert run("push", tmp_path / "out", there).stdout == f"{there}: complete\n"
    assert "600 samples" in run("pull", there, tmp_path / "back").stdout
    assert snapshot(tmp_path / "back") == snapshot(tmp_path / "out")


def test_a_set_may_go_straight_to_a_url(faces: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    words = [sys.executable, str(STAGE), f"file://{faces}", f"file://{tmp_path}/there", "--samples-per-tar", "40"]
    done = [subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False) for _ in range(2)]
    assert "600 samples of 30 identities, 16x16, in 15 tars" in done[0].stdout
    assert [run.returncode for run in done] == [0, 0]
    assert done[0].stdout == done[1].stdout
    assert snapshot(tmp_path / "there") == whole
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_large_files_at_a_url_are_copied_and_the_copies_removed(
    faces: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    assert shard(faces, tmp_path / "a").returncode == 0
    done = run(f"file://{tmp_path}/a", tmp_path / "b", "--samples-per-tar", 40)
    assert "600 samples of 30 identities, 16x16, in 15 tars" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert (tmp_path / "b" / "identities.txt").read_bytes() == whole["identities.txt"]


def test_parquet_columns_are_options(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = [HEADER + bytes([n]) + b"\xff\xd9" for n in range(9)]
    parquet.write_table(arrow.table({"photo": images, "person": [n % 3 for n in range(9)]}), tmp_path / "a.parquet")
    done = run(tmp_path / "a.parquet", tmp_path / "b")
    assert "got columns photo, person, wanted image and label" in done.stderr
    done = run(tmp_path / "a.parquet", tmp_path / "b", "--image-column", "photo", "--label-column", "person")
    assert "9 samples of 3 identities, 16x16, in 1 tar (" in done.stdout


def test_progress_is_served_to_prometheus_while_it_runs(faces: Path, tmp_path: Path) -> None:
    many, port = tmp_path / "many", free_port()
    for person in range(200):  # a tar each: far more than are done before this test has seen one
        (many / f"{person:03d}").mkdir(parents=True)
        for number in range(100):
            os.link(faces / "id000" / "0.jpg", many / f"{person:03d}" / f"{number}.jpg")
    tars = ["--samples-per-tar", "1", "--workers", "1", "--metrics-port", str(port)]
    running = subprocess.Popen([*command(many, tmp_path / "set"), *tars], stderr=subprocess.DEVNULL)
    try:
        samples: dict[str, float] = {}
        while not samples:
            assert running.poll() is None, "ended unseen"
            with contextlib.suppress(OSError):
                text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60).read().decode()
                families = text_string_to_metric_families(text)
                samples = {sample.name: sample.value for family in families for sample in family.samples}
    finally:
        running.kill()
        running.wait()
    assert samples["spherescale_samples_to_shard"] == 20_000
    assert 1 <= samples["spherescale_sharded_samples_total"] < 20_000
    assert samples["spherescale_sharded_bytes_total"] >= 20_000 * samples["spherescale_sharded_samples_total"]
