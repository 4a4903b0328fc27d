"""Listing ten million samples, from every kind of local source: wanted are less than 2 GB and less than a minute.

A source of ten million is made of few files under many names, so that it fits a small disk; what is listed is in the
page cache. Each is listed by a process of its own, whose peak memory counts whole, Python and its libraries included.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.shards.build import make_shards
from pipeline.shards.plan import make_plan
from pipeline.shards.sources.detect import open_source
from tests.benchmarks.results import write
from tests.shards import noise

FILES, EACH = 1000, 10_000
SAMPLES = FILES * EACH

LIST = """
import re, sys, time
from pathlib import Path
from pipeline.shards.sources.detect import open_source
start = time.perf_counter()
source = open_source(sys.argv[1])
seconds = time.perf_counter() - start
# not ru_maxrss, which remembers the process that this one was forked from
kilobytes = re.search("VmHWM: *([0-9]+)", Path("/proc/self/status").read_text().expandtabs(1)).group(1)
print(len(source.labels), seconds, int(kilobytes) * 1024)
"""


def folders(root: Path) -> Path:
    """One folder of empty images under a thousand names of people."""
    real, people = root / "real", root / "people"
    real.mkdir()
    people.mkdir()
    for number in range(EACH):
        (real / f"{number:05d}.jpg").touch()
    for person in range(FILES):
        (people / f"{person:07d}").symlink_to(real)
    return people


def list_file(root: Path) -> Path:
    """A line a sample."""
    path = root / "faces.tsv"
    with path.open("w") as file:
        for person in range(FILES):
            file.writelines(f"{person:07d}/{number:05d}.jpg\t{person:07d}\n" for number in range(EACH))
    return path


def recordio(root: Path) -> Path:
    """Records of the public format with a payload of eight bytes, and their index."""
    folder = root / "recordio"
    folder.mkdir()
    fields = [("magic", "<u4"), ("length", "<u4"), ("flag", "<u4"), ("label", "<f4"), ("id", "<u8"), ("id2", "<u8")]
    records = np.zeros(SAMPLES, [*fields, ("image", "S8")])
    records["magic"], records["length"] = 0xCED7230A, 32
    records["label"] = np.arange(SAMPLES) // EACH
    records["id"] = np.arange(1, SAMPLES + 1)
    records["image"] = b"\xff\xd8\xff\xe0\x01\x02\x03\x04"
    records.tofile(folder / "train.rec")
    places = np.arange(SAMPLES) * records.itemsize
    with (folder / "train.idx").open("w") as index:
        index.writelines(f"{key}\t{place}\n" for key, place in enumerate(places.tolist(), 1))
    return folder


def tars(root: Path) -> Path:
    """One tar of ten thousand samples, with its index, under a thousand names."""
    faces, made, folder = root / "faces", root / "made", root / "tars"
    for person in range(10):
        (faces / str(person)).mkdir(parents=True)
        for number in range(EACH // 10):
            (faces / str(person) / f"{number}.jpg").write_bytes(noise(person))
    make_shards(make_plan(open_source(faces), made, seed=0, samples_per_tar=EACH, size=None), workers=1)
    folder.mkdir()
    for number in range(FILES):
        for ending in ("tar", "idx"):
            os.link(made / f"faces-000000.{ending}", folder / f"faces-{number:06d}.{ending}")
    return folder


def parquet(root: Path) -> Path:
    """One file of a hundred thousand rows under a hundred names."""
    folder, rows = root / "parquet", 100_000
    folder.mkdir()
    image = pa.array([{"bytes": b"\xff\xd8\xff\xe0", "path": None}] * rows)
    pq.write_table(pa.table({"image": image, "label": pa.array(np.arange(rows) // 100)}), folder / "0.parquet")
    for number in range(1, SAMPLES // rows):
        os.link(folder / "0.parquet", folder / f"{number}.parquet")
    return folder


@pytest.mark.parametrize("make", [folders, list_file, recordio, tars, parquet])
def test_listing(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    source = make(tmp_path)
    done = subprocess.run([sys.executable, "-c", LIST, source], capture_output=True, text=True, check=True)
    samples, seconds, peak = map(float, done.stdout.split())
    assert samples == SAMPLES
    write(
        f"listing_{make.__name__}",
        {"samples": int(samples), "seconds": seconds, "gb": peak / 1e9, "wanted": {"seconds": 60, "gb": 2}},
    )
