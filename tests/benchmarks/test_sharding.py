"""Sharding against GNU tar (its floor) and against a loop over `webdataset.ShardWriter` (what one would write instead).

All contestants read the same files in one run, round after round; the median of each counts. The files are warm in the
page cache, so this measures the work and not the disk.
"""

import io
import json
import os
import shutil
import statistics
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from pipeline.shards.build import make_shards
from pipeline.shards.plan import make_plan
from pipeline.shards.sources.detect import open_source

ROOT = Path(__file__).parents[2]
PEOPLE, EACH, SAMPLES_PER_TAR, ROUNDS = 400, 50, 2500, 7


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20,000 JPEGs of 112x96, about 5 KB each: smooth shapes with noise."""
    root = tmp_path_factory.mktemp("faces")
    noise = np.random.default_rng(0)
    images = [noisy_jpeg(noise) for _ in range(500)]
    for person in range(PEOPLE):
        folder = root / f"id{person:04d}"
        folder.mkdir()
        for number in range(EACH):
            (folder / f"{number:03d}.jpg").write_bytes(images[(person * EACH + number) % len(images)])
    return root


def noisy_jpeg(noise: np.random.Generator) -> bytes:
    shapes = Image.fromarray(noise.integers(0, 256, (14, 12, 3), dtype=np.uint8)).resize((96, 112))
    pixels = np.asarray(shapes, np.int16) + noise.integers(-20, 21, (112, 96, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def ours(workers: int) -> Callable[[Path, Path], None]:
    def run(faces: Path, out: Path) -> None:
        make_shards(
            make_plan(open_source(faces), out, seed=0, samples_per_tar=SAMPLES_PER_TAR, size=None), workers=workers
        )

    return run


def shard_writer(faces: Path, out: Path) -> None:
    """The loop of webdataset's documentation over the same files; no digests, no index, no header checks."""
    out.mkdir()
    with webdataset.ShardWriter(f"{out}/faces-%06d.tar", maxcount=SAMPLES_PER_TAR, verbose=0) as writer:
        for label, folder in enumerate(sorted(faces.iterdir())):
            for path in sorted(folder.iterdir()):
                key = f"{label * EACH + int(path.stem):012d}"
                sample = {"jpg": path.read_bytes(), "cls": label, "json": {"key": f"{folder.name}/{path.name}"}}
                writer.write({"__key__": key, **sample})


def gnu_tar(faces: Path, out: Path) -> None:
    """One member an image, nothing else."""
    out.mkdir()
    subprocess.run(["tar", "cf", out / "faces.tar", "-C", faces, "."], check=True)


def gnu_tar_safe(faces: Path, out: Path) -> None:
    """What we promise besides: the bytes are on the disk and their digest is known."""
    gnu_tar(faces, out)
    subprocess.run(["sync", out / "faces.tar"], check=True)
    subprocess.run(["sha256sum", out / "faces.tar"], check=True, stdout=subprocess.DEVNULL)


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


def copy_records(records: Path, out: Path) -> None:
    """What cannot be avoided: the bytes copied, and their digest known."""
    out.mkdir()
    subprocess.run(["cp", records / "train.rec", out], check=True)
    subprocess.run(["sha256sum", out / "train.rec"], check=True, stdout=subprocess.DEVNULL)


def measure(contestants: dict[str, Callable[[Path, Path], None]], source: Path, out: Path) -> dict[str, float]:
    """Images per second of each contestant, the median of rounds in which all take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, run in contestants.items():
            os.sync()  # nobody pays for the writes of the one before
            start = time.perf_counter()
            run(source, out)
            seconds[name].append(time.perf_counter() - start)
            shutil.rmtree(out)
    return {name: PEOPLE * EACH / statistics.median(times) for name, times in seconds.items()}


def report(title: str, rate: dict[str, float]) -> dict[str, object]:
    """Print rates and how many times faster two workers are; return both for the JSON file."""
    best = rate["spherescale, 2 workers"]
    print(f"\n{title}: {PEOPLE * EACH:,} images, {os.cpu_count()} CPUs")
    for name, images in rate.items():
        print(f"{name:26} {images:9,.0f} images/s   2 workers are {best / images:.2f} x this")
    print(f"42 million images: {42e6 / best / 3600:.2f} hours with 2 workers")
    return {
        "images_per_second": rate,
        "two_workers_over": {name: best / images for name, images in rate.items()},
        "hours_for_42_million": 42e6 / best / 3600,
    }


def test_sharding_speed(faces: Path, tmp_path: Path) -> None:
    from_folder = measure(
        {
            "spherescale, 1 worker": ours(1),
            "spherescale, 2 workers": ours(2),
            "webdataset.ShardWriter": shard_writer,
            "GNU tar": gnu_tar,
            "GNU tar, sync, sha256sum": gnu_tar_safe,
        },
        faces,
        tmp_path / "out",
    )
    records = tmp_path / "records"
    records_of(faces, records)
    from_records = measure(
        {"spherescale, 2 workers": ours(2), "cp, sha256sum": copy_records}, records, tmp_path / "out"
    )
    sizes = [path.stat().st_size for path in faces.rglob("*.jpg")]
    results = {
        "images": PEOPLE * EACH,
        "mean_bytes": statistics.mean(sizes),
        "cpus": os.cpu_count(),
        "rounds": ROUNDS,
        "identity_folders": report("identity folders", from_folder),
        "recordio": report("RecordIO", from_records),
    }
    path = ROOT / "runs" / "bench" / "sharding.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1))
