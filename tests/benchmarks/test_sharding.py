"""Sharding against GNU tar (its floor) and against a loop over `webdataset.ShardWriter` (what one would write instead).

All contestants read the same files in one run, round after round; the median of each counts. The files are warm in the
page cache. Output goes to a disk, where ours alone waits until the bytes are there, and to memory, where no disk
counts. Processor time stands beside the rates, since it says more than they do when others use the machine.
"""

import os
import resource
import shutil
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.benchmarks.results import write
from tests.faces import write_noisy_faces

PEOPLE, EACH, SAMPLES_PER_TAR, ROUNDS = 1000, 50, 5000, 5
IMAGES = PEOPLE * EACH
MEMORY = Path("/dev/shm")

# Contestants in Python are processes of their own that say their seconds and processor seconds: the start of Python is
# not sharding, and a process that has loaded torch, as that of the benchmarks has, takes four times as long to fork.
CLOCK = """
import resource, sys, time
from pathlib import Path
def processor_seconds():
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
"""

OURS = f"""{CLOCK}
from pipeline.shards.making.build import make_shards
from pipeline.shards.making.plan import make_plan
from pipeline.shards.sources.detect import open_source
faces, out, per_tar, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
before, start = processor_seconds(), time.perf_counter()
make_shards(make_plan(open_source(faces), out, seed=0, samples_per_tar=per_tar, size=None), workers=workers)
print(time.perf_counter() - start, processor_seconds() - before)
"""

# The loop of webdataset's documentation over the same files; no digests, no index, no header checks.
SHARD_WRITER = f"""{CLOCK}
import webdataset
faces, out, per_tar = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
out.mkdir()
before, start = processor_seconds(), time.perf_counter()
with webdataset.ShardWriter(f"{{out}}/faces-%06d.tar", maxcount=per_tar, verbose=0) as writer:
    number = 0
    for label, folder in enumerate(sorted(faces.iterdir())):
        for path in sorted(folder.iterdir()):
            sample = {{"jpg": path.read_bytes(), "cls": label, "json": {{"key": f"{{folder.name}}/{{path.name}}"}}}}
            writer.write({{"__key__": f"{{number:012d}}", **sample}})
            number += 1
print(time.perf_counter() - start, processor_seconds() - before)
"""


class Speed(NamedTuple):
    """Medians over rounds."""

    images_per_second: float
    processor_seconds: float


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50,000 JPEGs of 112x96, about 5 KB each: smooth shapes with noise."""
    return write_noisy_faces(tmp_path_factory.mktemp("faces"), PEOPLE, EACH)


def timed(program: str, *words: object) -> Callable[[Path, Path], tuple[float, float]]:
    def run(source: Path, out: Path) -> tuple[float, float]:
        command = [sys.executable, "-c", program, source, out, SAMPLES_PER_TAR, *words]
        done = subprocess.run([*map(str, command)], check=True, capture_output=True, text=True)
        seconds, processor = map(float, done.stdout.split())
        return seconds, processor

    return run


def commands(*lines: str) -> Callable[[Path, Path], tuple[float, float]]:
    """Shell commands with `source` and `out` in braces, `out` being a new folder."""

    def run(source: Path, out: Path) -> tuple[float, float]:
        out.mkdir()
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        for line in lines:
            subprocess.run(line.format(source=source, out=out).split(), check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return time.perf_counter() - start, processor

    return run


TAR = "tar cf {out}/faces.tar -C {source} ."
# What we promise besides: the bytes are on the disk and their digest is known.
SAFE = ("sync {out}/faces.tar", "sha256sum {out}/faces.tar")


def records_of(faces: Path, out: Path) -> None:
    """The same images as InsightFace packs them, without the identity records, which sharding can do without."""
    out.mkdir()
    offset = 0
    with (out / "train.rec").open("wb") as rec, (out / "train.idx").open("w") as idx:
        for key, path in enumerate(sorted(faces.glob("*/*.jpg")), start=1):
            data = struct.pack("<IfQQ", 0, (key - 1) // EACH, key, 0) + path.read_bytes()
            record = struct.pack("<II", 0xCED7230A, len(data)) + data + bytes(-len(data) % 4)
            idx.write(f"{key}\t{offset}\n")
            offset += rec.write(record)


def measure(
    contestants: dict[str, Callable[[Path, Path], tuple[float, float]]], source: Path, out: Path
) -> dict[str, Speed]:
    """Speeds of contestants that take turns."""
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, run in contestants.items():
            os.sync()  # nobody pays for the writes of the one before
            turns[name].append(run(source, out))
            shutil.rmtree(out)
    medians = {
        name: [statistics.median(column) for column in zip(*times, strict=True)] for name, times in turns.items()
    }
    return {name: Speed(IMAGES / seconds, processor) for name, (seconds, processor) in medians.items()}


def ratios(speeds: dict[str, Speed]) -> dict[str, object]:
    best = speeds["spherescale, 2 workers"].images_per_second
    return {
        "speeds": {name: speed._asdict() for name, speed in speeds.items()},
        "two_workers_over": {name: best / speed.images_per_second for name, speed in speeds.items()},
        "hours_for_42_million": 42e6 / best / 3600,
    }


def test_sharding_speed(faces: Path, tmp_path: Path) -> None:
    ours = {f"spherescale, {n} worker{'s' * (n > 1)}": timed(OURS, n) for n in (1, 2)}
    tar = {"GNU tar": commands(TAR)}
    to_disk = {
        **ours,
        **tar,
        "GNU tar, sync, sha256sum": commands(TAR, *SAFE),
        "webdataset.ShardWriter": timed(SHARD_WRITER),
    }
    records = tmp_path / "records"
    records_of(faces, records)
    copy = commands("cp {source}/train.rec {out}", "sha256sum {out}/train.rec")
    in_memory = MEMORY / f"spherescale-{os.getpid()}"
    write(
        "sharding",
        {
            "images": IMAGES,
            "mean_bytes": statistics.mean(path.stat().st_size for path in faces.rglob("*.jpg")),
            "rounds": ROUNDS,
            "load_average_at_start": os.getloadavg()[0],
            "folder_to_disk": ratios(measure(to_disk, faces, tmp_path / "out")),
            "folder_to_memory": ratios(measure({**ours, **tar}, faces, in_memory)),
            "recordio_to_disk": ratios(measure({**ours, "cp, sha256sum": copy}, records, tmp_path / "out")),
            "load_average_at_end": os.getloadavg()[0],
        },
    )
