"""The planner's time of a step against runs: calibrated on one set, planned and measured for another.

SphereFace-4 on 112 × 96, fp32. Calibrated with a global batch of 32 on 600 people; planned for batches of 48 and 16 and
6,000 people, whose classifier is ten times as large. On one rank, and on two that share the machine's cores.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.results import write
from tests.end_to_end.launcher import DEEPSPEED, metrics
from tests.faces import ROOT, write_shards
from tests.ports import free_port

RECIPE = """
seed: 1
precision: float32
data: {{shards: {shards}, global_batch: {batch}, streams: 2, decode_threads: 1}}
backbone: {{name: sphereface4}}
optimizer: {{steps: {steps}, learning_rate: 0.01}}
log: {{every: 1, metrics_port: null}}
"""
STEPS, WARM = 24, 4
# people, and global batch
CALIBRATED, PLANNED = (600, 32), ((600, 32), (600, 48), (6000, 32), (6000, 16))


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("sets")
    return {
        people: write_shards(folder / str(people), identities=people, images=1, height=112, width=96)
        for people in (600, 6000)
    }


def run(folder: Path, ranks: int, stage: str, *arguments: object) -> None:
    command = [DEEPSPEED, "--num_gpus", ranks, "--master_port", free_port(), ROOT / "stages" / stage, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": str(2 // ranks), "PATH": f"{DEEPSPEED.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def recipe(folder: Path, shards: Path, batch: int) -> Path:
    file = folder / f"{shards.parent.name}-{batch}.yaml"
    file.write_text(RECIPE.format(shards=shards, batch=batch, steps=STEPS))
    return file


@pytest.mark.parametrize("ranks", [1, 2])
def test_step_time_as_planned(sets: dict[int, Path], tmp_path: Path, ranks: int) -> None:
    people, batch = CALIBRATED
    rates = tmp_path / "rates.json"
    run(tmp_path, ranks, "calibrate.py", "--recipe", recipe(tmp_path, sets[people], batch), "--out", rates)
    rows = []
    for people, batch in PLANNED:
        file = recipe(tmp_path, sets[people], batch)
        command = [sys.executable, ROOT / "stages" / "plan.py", "--recipe", file, "--ranks", ranks, "--rates", rates]
        answer = json.loads(subprocess.check_output([*map(str, command), "--json"]))
        run(tmp_path, ranks, "train.py", "--recipe", file, "--run", tmp_path / file.stem)
        times = [row["time"] for row in metrics(tmp_path / file.stem)][WARM:]
        measured = statistics.median(after - before for before, after in itertools.pairwise(times))
        planned = sum(answer["step_seconds"].values())
        rows.append(
            {
                "people": people,
                "global_batch": batch,
                "planned_ms": 1e3 * planned,
                "measured_ms": 1e3 * measured,
                "planned_over_measured": planned / measured,
                "planned_images_per_second": batch / planned,
                "parts_ms": {part: 1e3 * seconds for part, seconds in answer["step_seconds"].items()},
            }
        )
    write(f"planner_{ranks}_ranks", {"wanted": "planned / measured from 0.85 to 1.15", "rows": rows})
