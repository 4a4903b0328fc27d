"""Sharding against GNU tar (its floor) and against a loop over `webdataset.ShardWriter` (what one would write instead).

All contestants read the same files in one run, round after round; the median of each counts. The files are warm in the
page cache, so this measures the work and not the disk.
"""

import io
import json
import os
import shutil
import statistics
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
from pipeline.shards.sources.folder import scan_folder

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
        source = scan_folder(faces)
        make_shards(make_plan(source, out, seed=0, samples_per_tar=SAMPLES_PER_TAR, size=None), workers=workers)

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


CONTESTANTS: dict[str, Callable[[Path, Path], None]] = {
    "spherescale, 1 worker": ours(1),
    "spherescale, 2 workers": ours(2),
    "webdataset.ShardWriter": shard_writer,
    "GNU tar": gnu_tar,
    "GNU tar, sync, sha256sum": gnu_tar_safe,
}


def test_sharding_speed(faces: Path, tmp_path: Path) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for _ in range(ROUNDS):
        for name, run in CONTESTANTS.items():
            out = tmp_path / "out"
            os.sync()  # nobody pays for the writes of the one before
            start = time.perf_counter()
            run(faces, out)
            seconds[name].append(time.perf_counter() - start)
            shutil.rmtree(out)
    rate = {name: PEOPLE * EACH / statistics.median(times) for name, times in seconds.items()}
    best = rate["spherescale, 2 workers"]
    ratios = {name: best / rate[name] for name in rate}
    sizes = sum(path.stat().st_size for path in faces.rglob("*.jpg"))
    print(f"\n{PEOPLE * EACH:,} images of {sizes / PEOPLE / EACH / 1000:.1f} KB, {os.cpu_count()} CPUs")
    for name, images in rate.items():
        print(f"{name:26} {images:9,.0f} images/s   2 workers are {ratios[name]:.2f} x this")
    print(f"42 million images: {42e6 / best / 3600:.2f} hours with 2 workers")
    path = ROOT / "runs" / "bench" / "sharding.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(
            {
                "images": PEOPLE * EACH,
                "mean_bytes": sizes / PEOPLE / EACH,
                "cpus": os.cpu_count(),
                "rounds": ROUNDS,
                "images_per_second": rate,
                "two_workers_over": ratios,
                "hours_for_42_million": 42e6 / best / 3600,
            },
            indent=1,
        )
    )
