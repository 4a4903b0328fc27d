"""`stages/study.py` as a user runs it: stopped, killed, shared by two processes, and finished all the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cluster.marks import VARIABLE, marked, sweep
from cluster.stop import EXIT_REFUSED, EXIT_STOPPED
from pipeline.evaluation.protocols.drawn import folder_rows
from pipeline.evaluation.protocols.pairs import list_images
from pipeline.evaluation.protocols.pairs_file import COLUMNS
from pipeline.evaluation.results import load
from pipeline.run.checkpoint import complete_steps
from tests.end_to_end.launcher import DEEPSPEED, metrics
from tests.faces import ROOT, write_faces, write_shards
from tests.warm_stage import run_warm

PATIENCE_SECONDS = 300  # of a loaded machine; nothing waits so long that goes well
STEPS = 60
RUNS = ["plain-seed1", "m4-seed1", "plain-seed2", "m4-seed2"]

RECIPE = f"""\
data: {{shards: elsewhere, global_batch: 12, streams: 2, decode_threads: 1}}
backbone: {{name: sphereface4, embedding_dim: 8}}
optimizer: {{steps: {STEPS}, learning_rate: 0.02, warmup_steps: 3}}
checkpoint: {{every: 10}}
log: {{every: 1, metrics_port: null}}
"""

STUDY = """\
title: Two losses
recipe: recipe.yaml
shards: shards
sets: {held-out: {images: held-out, pairs: held-out.tsv}}
seeds: [1, 2]
arms:
  plain: {set: [head.margin=softmax]}
  m4: {}
tables:
  - {title: losses, columns: {softmax: plain, m = 4: m4}, published: {held-out: [97.88, null]}}
"""


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A study file with its recipe, and below data/ shards of six people and pairs of five others."""
    data = tmp_path / "data"
    write_shards(data, identities=6, images=6)
    images = write_faces(data / "held-out", identities=5, images=5, seed=1)
    pairs = [(row.fold, row.path_a, row.path_b, str(int(row.same))) for row in folder_rows(images, 2, 8, seed=0)]
    (data / "held-out.tsv").write_text("".join("\t".join(row) + "\n" for row in [COLUMNS, *pairs]))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path


STAGE = ROOT / "stages" / "study.py"
OPTIONS = ["study.yaml", "--data", "data", "--out", "out", "--resamples", "20"]


def refusal(scene: Path, *arguments: str) -> str:
    """What the stage prints, which must be a refusal."""
    done = run_warm(STAGE, *OPTIONS, *arguments, folder=scene)
    assert done.returncode == EXIT_REFUSED, done.stderr
    return done.stdout + done.stderr


def start(scene: Path, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{DEEPSPEED.parent}:{os.environ['PATH']}"}
    with (scene / "output").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, str(STAGE), *OPTIONS, *arguments],
            cwd=scene,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def wait_for(condition: Callable[[], object], process: subprocess.Popen[bytes], scene: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, (scene / "output").read_text()
        time.sleep(0.05)


def newest(scene: Path, run: str) -> int:
    return max(complete_steps(scene / "out" / run), default=0)


def starts(scene: Path, run: str) -> int:
    return 1 + int(json.loads((scene / "out" / run / "run.json").read_text())["restarts"])


def test_a_study_that_is_stopped_and_killed_goes_on_to_one_table(scene: Path) -> None:
    out = scene / "out"
    first, second, *_ = RUNS

    stopped = start(scene)
    try:
        wait_for(lambda: newest(scene, first) >= 10, stopped, scene)
        stopped.send_signal(signal.SIGTERM)
        assert stopped.wait(PATIENCE_SECONDS) == EXIT_STOPPED
        reached = newest(scene, first)
        assert reached == metrics(out / first)[-1]["step"]  # nothing of what was trained is lost

        killed = start(scene)
        wait_for(lambda: newest(scene, second) >= 10, killed, scene)
        killed.kill()
        killed.wait()
        sweep(out / second)  # as a power cut would
        kept, half = newest(scene, second), (out / second / "study.log").stat().st_size
        finished = sorted((out / first / "evaluations").rglob("step-*"))
        times = [file.stat().st_mtime_ns for file in finished]

        workers = [start(scene), start(scene)]
        codes = [worker.wait(PATIENCE_SECONDS) for worker in workers]
        assert codes == [0, 0], (scene / "output").read_text()
    finally:
        for run in RUNS:
            sweep(out / run)
    assert [newest(scene, run) for run in RUNS] == [STEPS] * 4
    # what was done is not done again, and what was half done goes on
    assert starts(scene, first) == (1 if reached == STEPS else 2)
    assert [file.stat().st_mtime_ns for file in finished] == times
    assert len(finished) == 2
    if kept < STEPS:
        assert f"resumed {out / second} at step {kept}".replace(f"{scene}/", "") in (
            (out / second / "study.log").read_bytes()[half:].decode()
        )
    table = (out / "study.md").read_text()
    assert "| seeds done | 2 of 2 | 2 of 2 |" in table
    assert "| published | 97.88% | – |" in table
    assert (out / "study.html").read_text().count("<svg") == 1
    output = (scene / "output").read_text()
    assert all(output.count(f"{run} done") == 1 for run in RUNS)
    assert VARIABLE not in os.environ


def test_a_run_that_fails_is_named_and_the_others_go_on(scene: Path) -> None:
    study = (scene / "study.yaml").read_text().replace("seeds: [1, 2]", "seeds: [1]")
    study = study.replace("arms:", "networks: {theirs: {embeddings: theirs.npz}}\narms:")
    study = study.replace("m = 4: m4}, published: {held-out: [97.88, null]", "m = 4: m4, from elsewhere: theirs")
    (scene / "study.yaml").write_text(study.replace("head.margin=softmax", "optimizer.learning_rate=1.0e+30"))
    images = list_images(scene / "data" / "held-out")
    rows = np.random.default_rng(0).normal(size=(len(images), 6)).astype(np.float32)
    np.savez(scene / "data" / "theirs.npz", paths=np.array(images), embeddings=rows)
    left_behind = subprocess.Popen(
        [sys.executable, "-c", "input()"], env=marked(scene / "out" / "m4-seed1"), stdin=subprocess.PIPE
    )
    process = start(scene, "--set", "optimizer.steps=12", "--set", "faults.action=stop")
    assert process.wait(PATIENCE_SECONDS) == 1
    left_behind.communicate()
    assert left_behind.returncode == -signal.SIGKILL  # two would have worked in one folder
    output = (scene / "output").read_text()
    assert "plain-seed1 failed: training ended with code 65" in output
    assert "m4-seed1 done" in output
    assert "| seeds done | 0 of 1 | 1 of 1 | 1 of 1 |" in (scene / "out" / "study.md").read_text()
    judged = load(scene / "out/theirs/evaluations/held-out/step-00000000.json").summary.verification.accuracy
    assert f"| {judged.value:.2%} (" in (scene / "out" / "study.md").read_text()

    # A study that has changed since is refused, with the run and the key; nothing is mixed.
    assert "plain-seed1: began with optimizer.steps: 12 → 13: wanted the same" in refusal(
        scene, "--set", "optimizer.steps=13"
    )


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda scene: (scene / "data" / "held-out.tsv").unlink(), "data/held-out.tsv: cannot be read"),
        (lambda scene: (scene / "study.yaml").write_text("title: nothing\n"), "study.yaml: recipe: missing"),
        (lambda scene: (scene / "data" / "shards" / "manifest.json").unlink(), "manifest.json"),
    ],
    ids=["pairs", "study", "shards"],
)
def test_what_would_fail_after_hours_is_refused_at_once(
    scene: Path, break_it: Callable[[Path], object], message: str
) -> None:
    break_it(scene)
    output = refusal(scene)
    assert message in output
    assert "Traceback" not in output
    assert not (scene / "out").exists()
