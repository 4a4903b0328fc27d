"""The published sizes with made-up features: each must stay below 2 GiB, imports included."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.benchmarks.results import write

GIB = 1 << 30

# IJB: pairs of templates of 1,024 numbers, scored, and TAR at FAR with its interval over subjects.
PAIRS = """\
import json, resource, sys, time
import numpy as np
from pipeline.evaluation.scoring.templates import Templates, verify_templates
templates, pairs = int(sys.argv[1]), int(sys.argv[2])
generator = np.random.default_rng(0)
subject = np.arange(templates) // 6
features = generator.standard_normal((templates, 1024), np.float32).astype(np.float64)
a, b = generator.integers(templates, size=(2, pairs), dtype=np.int32)
a[:20000] = b[:20000] // 6 * 6
same = subject[a] == subject[b]
subjects = dict(enumerate(subject.tolist()))
began = time.perf_counter()
verify_templates(Templates(np.arange(templates), features), (a, b, same), subjects, (1e-6, 1e-4), resamples=5)
seconds = time.perf_counter() - began
print(json.dumps([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, seconds]))
"""

# YTF: 3,425 videos of 180 frames, their features on disk, averaged by video.
FRAMES = """\
import json, resource, sys, tempfile, time
from pathlib import Path
import numpy as np
from pipeline.evaluation.embedding.kept import PART, Kept, means_of_frames
videos, frames = int(sys.argv[1]), int(sys.argv[2])
with tempfile.TemporaryDirectory() as folder:
    parts, generator = [], np.random.default_rng(0)
    for start in range(0, videos * frames, PART):
        file = Path(folder) / f"{start}.npy"
        np.save(file, generator.standard_normal((min(PART, videos * frames - start), 1024), np.float32))
        parts.append(np.load(file, mmap_mode="r"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    means_of_frames(Kept(parts), np.full(videos, frames))
    seconds = time.perf_counter() - began
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
print(json.dumps([int(status["VmHWM"].split()[0]) * 1024, seconds]))
"""


@pytest.mark.parametrize(
    ("name", "program", "sizes"),
    [
        ("IJB-B", PAIRS, (12_115, 8_010_270)),
        ("IJB-C", PAIRS, (23_124, 15_658_489)),
    ],
)
def test_the_pairs_of_ijb_fit(name: str, program: str, sizes: tuple[int, int]) -> None:
    done = subprocess.run([sys.executable, "-c", program, *map(str, sizes)], check=True, capture_output=True, text=True)
    peak, seconds = json.loads(done.stdout)
    write(f"scale_{name.lower()}", {"pairs": sizes[1], "peak_bytes": peak, "seconds": seconds})
    assert peak < 2 * GIB


def test_the_frames_of_ytf_fit() -> None:
    """Pages of mapped files count as resident while there is room: they are not the process's own."""
    done = subprocess.run([sys.executable, "-c", FRAMES, "3425", "180"], check=True, capture_output=True, text=True)
    peak, seconds = json.loads(done.stdout)
    write("scale_ytf", {"frames": 3425 * 180, "peak_bytes": peak, "seconds": seconds})
    mapped = 3425 * 180 * 1024 * 4
    assert peak < 2 * GIB + mapped
