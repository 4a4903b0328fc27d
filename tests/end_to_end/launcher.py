"""Start the stages as a user does: as subprocesses, through the ``deepspeed`` launcher, from another directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.faces import ROOT
from tests.ports import free_port
from tests.warm_stage import run_warm

TRAIN = ROOT / "stages" / "train.py"
DEEPSPEED = Path(sys.executable).with_name("deepspeed")
# Packages that were only copied somewhere bring no commands: the same launcher, as a module.
LAUNCHER = [str(DEEPSPEED)] if DEEPSPEED.exists() else [sys.executable, "-m", "deepspeed.launcher.runner"]
PATIENCE_SECONDS = 300  # for a loaded machine; no wait that succeeds takes so long

RECIPE = """
seed: 5
data: {{shards: {shards}, global_batch: 12, streams: 2, decode_threads: 1}}
backbone: {{name: sphereface4, embedding_dim: 8}}
optimizer: {{steps: {steps}, learning_rate: 0.02, warmup_steps: 3}}
checkpoint: {{every: 5}}
log: {{every: 1, metrics_port: {port}}}
"""


def write_recipe(path: Path, shards: Path, steps: int, port: int | str = "null") -> Path:
    path.write_text(RECIPE.format(shards=shards, steps=steps, port=port))
    return path


# What keeps a run off the GPUs.
ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}


def start_training(
    folder: Path, ranks: int, *arguments: str | Path, environment: Mapping[str, str] = {}
) -> subprocess.Popen[str]:
    """The launcher on `ranks` ranks of this machine, in a process group of its own, output in one pipe."""
    command = [*LAUNCHER, "--num_gpus", str(ranks), "--master_port", str(free_port()), TRAIN, *arguments]
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{DEEPSPEED.parent}:{os.environ['PATH']}", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def train(folder: Path, ranks: int, *arguments: str | Path, environment: Mapping[str, str] = {}) -> str:
    """Train to the end; the output. Fails, showing it, unless the launcher exits with 0."""
    process = start_training(folder, ranks, *arguments, environment=environment)
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, output
    return output


def train_alone(folder: Path, *arguments: str | Path) -> str:
    """As `train`, on one rank without a launcher and in a warm process: a run to compare with."""
    done = run_warm(TRAIN, *arguments, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def run_python(script: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A script in one process, without a launcher, to its end; its exit code is the caller's to judge."""
    command = [str(part) for part in (sys.executable, script, *arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until it holds. Fails, showing the output, if the process ends before."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"waited {PATIENCE_SECONDS} s"
        time.sleep(0.02)


def metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a torn last line is left out."""
    rows = []
    path = run / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
