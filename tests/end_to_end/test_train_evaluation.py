"""Evaluation while training as a user has it: in the recipe, on two ranks, through a kill, to Prometheus and report."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cluster.stop import EXIT_REFUSED
from pipeline.evaluation.results import load
from pipeline.run.checkpoint import complete_steps
from tests.end_to_end.launcher import TRAIN, metrics, start_training, train, train_alone, wait_for
from tests.end_to_end.supervised import Supervised
from tests.faces import ROOT, write_faces, write_pairs, write_shards
from tests.warm_stage import run_warm

RECIPE = """
seed: 5
data: {{shards: {shards}, global_batch: 12, decode_threads: 1}}
backbone: {{name: sphereface4, embedding_dim: 8}}
optimizer: {{steps: 14, learning_rate: 0.02, warmup_steps: 3}}
checkpoint: {{every: 5, keep: 1}}
evaluation: {{sets: {{strangers: {{images: {images}, pairs: {pairs}}}}}, resamples: 20}}
log: {{every: 1, metrics_port: {port}}}
"""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, eleven images of four people who are not in them, their pairs, and a recipe."""
    folder = tmp_path_factory.mktemp("scene")
    shards = write_shards(folder / "set", identities=7, images=6)
    faces = write_faces(folder / "strangers", identities=4, images=3, seed=9)
    (faces / "person003/0002.jpg").unlink()
    write_pairs(faces)
    write_recipe(folder / "recipe.yaml", shards, folder)
    return folder


def write_recipe(path: Path, shards: Path, folder: Path, port: int | str = "null") -> None:
    path.write_text(RECIPE.format(shards=shards, images=folder / "strangers", pairs=folder / "pairs.tsv", port=port))


@pytest.fixture(scope="module")
def run(scene: Path) -> Path:
    """A whole run on two ranks; what it printed lies in its folder."""
    output = train(scene, 2, "--recipe", "recipe.yaml", "--run", "run")
    (scene / "run/printed.txt").write_text(output)
    return scene / "run"


def evaluations(run: Path) -> list[dict[str, Any]]:
    return [row for row in metrics(run) if "evaluation" in row]


def stage(name: str, *arguments: str | Path) -> str:
    done = run_warm(ROOT / "stages" / name, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_saved_step_is_evaluated_shown_and_logged(run: Path) -> None:
    rows = evaluations(run)
    assert [row["step"] for row in rows] == [5, 10, 14]
    printed = (run / "printed.txt").read_text()
    for row in rows:
        found = load(run / f"evaluations/strangers/step-{row['step']:08d}.json").summary.verification
        assert row["evaluation"]["strangers"]["accuracy"] == found.accuracy.value
        assert row["evaluation_faults"] == []
        assert f"step {row['step']}/14  evaluated  strangers {found.accuracy.value:.2%}  (best: step " in printed
    trained = [row for row in metrics(run) if "evaluation" not in row]
    assert [row["step"] for row in trained] == list(range(1, 15))
    assert all("evaluation" not in row["step_part_seconds"] for row in trained)


def test_the_best_is_kept_and_every_stage_finds_it(run: Path, tmp_path: Path) -> None:
    accuracies = {row["step"]: row["evaluation"]["strangers"]["accuracy"] for row in evaluations(run)}
    best = json.loads((run / "best.json").read_text())
    step = max(accuracies, key=lambda step: (accuracies[step], -step))
    assert best == {"step": step, "set": "strangers", "accuracy": accuracies[step]}
    assert {0, step, 14} <= set(complete_steps(run))
    assert len(complete_steps(run)) <= 4, "the last save may yet have kept what was best before it"
    options: list[str | Path] = [
        "--images",
        run.parent / "strangers",
        "--pairs",
        run.parent / "pairs.tsv",
        "--resamples",
        "20",
    ]
    table = stage("evaluate.py", run, *options, "--name", "again", "--step", "best", "--report").splitlines()
    assert table[1].split()[:2] == [str(step), f"{accuracies[step]:.2%}"]
    assert "accuracy while training" in (run / "report.html").read_text()
    (head, line) = stage("status.py", run.parent).splitlines()
    assert head.split()[:3] == ["run", "state", "step"]
    assert re.split("  +", line)[:3] == [str(run), "finished", "14/14"]
    assert f"strangers {accuracies[14]:.2%}" in line and f"{best['accuracy']:.2%} at {step}" in line
    stage("embed.py", run, run.parent / "strangers", tmp_path / "faces.parquet", "--step", "best")
    stage("export.py", run, tmp_path / "exported", "--step", "best")
    assert json.loads((tmp_path / "exported/backbone.json").read_text())["step"] == step


def test_killed_before_its_last_evaluation_it_does_that_alone(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    (copy / "evaluations/strangers/step-00000014.json").unlink()
    recipe = run.parent / "recipe.yaml"
    supervised = Supervised(tmp_path, ["--ranks", "1"], recipe, copy)  # to which such a run is not at its end
    assert supervised.end() == 0, supervised.output
    assert [row["step"] for row in evaluations(copy)] == [5, 10, 14]
    assert [row["loss"] for row in metrics(copy) if "loss" in row] == [
        row["loss"] for row in metrics(run) if "loss" in row
    ]
    assert "is finished: 14 steps; nothing to do" in train(tmp_path, 1, "--recipe", recipe, "--run", copy)


def test_scraped_while_it_trains_and_after_a_kill_nothing_is_doubled(scene: Path, tmp_path: Path) -> None:
    write_recipe(tmp_path / "recipe.yaml", scene / "set/shards", scene, port=0)
    run = tmp_path / "run"
    process = start_training(tmp_path, 2, "--recipe", "recipe.yaml", "--run", run, "--set", "optimizer.steps=100000")
    try:
        wait_for(lambda: len(evaluations(run)) >= 2, process)
        for target in sorted((run / "targets").glob("*.json")):
            address = json.loads(target.read_text())[0]["targets"][0]
            text = urllib.request.urlopen(f"http://{address}/metrics", timeout=60).read().decode()
            lines = [line for line in text.splitlines() if line.startswith("spherescale_evaluation")]
            values = {line.split("{")[0]: float(line.split()[-1]) for line in lines}
            accuracy = values["spherescale_evaluation_accuracy_ratio"]
            assert 0.3 < accuracy <= values["spherescale_evaluation_best_accuracy_ratio"] <= 1
            assert values["spherescale_evaluation_seconds_total"] > 0
            assert sum('set="strangers"' in line for line in lines) == 2
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    last = complete_steps(run)[-1] + 3
    train_alone(tmp_path, "--recipe", "recipe.yaml", "--run", run, "--set", f"optimizer.steps={last}")
    counts = Counter(row["step"] for row in evaluations(run))
    assert counts == dict.fromkeys([*range(5, last, 5), last], 1)
    best = json.loads((run / "best.json").read_text())
    assert best["step"] in complete_steps(run)


@pytest.mark.parametrize("fault", ["pairs", "image"])
def test_a_faulty_set_is_refused_before_the_start(scene: Path, tmp_path: Path, fault: str) -> None:
    images = Path(shutil.copytree(scene / "strangers", tmp_path / "strangers"))
    change = f"evaluation.sets.strangers.images={images}"
    wanted = f"{images / 'person001/0001.jpg'}: cannot be decoded, wanted images 32 high and 32 wide"
    if fault == "pairs":
        change = f"evaluation.sets.strangers.pairs={tmp_path / 'none.tsv'}"
        wanted = f"{tmp_path / 'none.tsv'}: cannot be read: No such file or directory"
    else:
        (images / "person001/0001.jpg").write_bytes(b"no image")
    done = run_warm(TRAIN, "--recipe", scene / "recipe.yaml", "--run", tmp_path / "run", "--set", change)
    assert done.returncode == EXIT_REFUSED, done.stderr
    assert f"train.py: evaluation.sets.strangers: {wanted}" in done.stderr
    assert not [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
