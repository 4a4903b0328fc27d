"""Evaluation at the sizes that are published, with made-up features: IJB-B, IJB-C and YTF, a process each.

MegaFace's million distractors are in `test_evaluation`. Features are rows of one block of `PART`, again and again: what
is read is in the page cache, as a set's that was just embedded.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks.results import write

ROOT = Path(__file__).parents[2]
LIMIT_GIB = 2.0

# Whitelam et al. 2017 and Maze et al. 2018, as InsightFace distributes them: templates, subjects, pairs of one and of
# two subjects, faces.
IJB = {
    "IJB-B": (12_115, 1_845, 10_270, 8_000_000, 227_630),
    "IJB-C": (23_124, 3_531, 19_557, 15_638_932, 469_375),
}
YTF = (3_425, 621_126)  # Wolf, Hassner, Maoz 2011: videos, frames
RESAMPLES = 100

PRELUDE = """\
import json, sys, time
from pathlib import Path
import numpy as np
from pipeline.evaluation.embedding.kept import PART, Kept

def peak():  # getrusage would inherit the peak of the process that started this one
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20

generator = np.random.default_rng(0)
block = generator.standard_normal((PART, 1024), np.float32)
marks = {"imports": peak()}
seconds = {}

def timed(name, start):
    seconds[name] = time.perf_counter() - start
    marks[name] = peak()
"""

TEMPLATES = (
    PRELUDE
    + """\
from pipeline.evaluation.scoring.templates import fuse, verify_templates
templates, subjects, genuine, impostors, images, resamples = map(int, sys.argv[1:])
subject = np.arange(templates) % subjects
template = np.concatenate([np.arange(templates), generator.integers(templates, size=images - templates)])
medium = generator.integers(5, size=images)
start = time.perf_counter()
fused = fuse(lambda some: block[some % PART], template, medium)
timed("fuse", start)
a = generator.integers(templates, size=genuine + impostors)
b = generator.integers(templates, size=genuine + impostors)
b[:genuine] = np.where(a + subjects < templates, a + subjects, a - subjects)[:genuine]
same = np.arange(genuine + impostors) < genuine
who = dict(enumerate(subject.tolist()))
start = time.perf_counter()
found = verify_templates(fused, (a, b, same), who, (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1), resamples)
timed("verify", start)
assert len(found.tar) == 6
print(json.dumps({"seconds": seconds, "peak_gib": marks}))
"""
)

VIDEOS = (
    PRELUDE
    + """\
from pipeline.evaluation.embedding.kept import means_of_frames
videos, frames = map(int, sys.argv[1:])
cuts = np.sort(generator.choice(frames - 1, videos - 1, replace=False) + 1)
counts = np.diff(np.concatenate([[0], cuts, [frames]]))
kept = Kept([block] * (frames // PART) + [block[: frames % PART]])
start = time.perf_counter()
means = means_of_frames(kept, counts)
timed("means", start)
assert means.shape == (videos, 1024) and np.isfinite(means).all()
print(json.dumps({"seconds": seconds, "peak_gib": marks}))
"""
)


def run(program: str, *sizes: int) -> dict[str, Any]:
    """What the program printed; it must stay below the limit."""
    command = [sys.executable, "-c", program, *map(str, sizes)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert max(result["peak_gib"].values()) < LIMIT_GIB
    return result


def test_templates_of_ijb() -> None:
    write(
        "templates",
        {"resamples": RESAMPLES, **{name: run(TEMPLATES, *sizes, RESAMPLES) for name, sizes in IJB.items()}},
    )


def test_frames_of_ytf() -> None:
    write("frames", {"videos": YTF[0], "frames": YTF[1], **run(VIDEOS, *YTF)})
