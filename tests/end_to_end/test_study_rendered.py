"""The study of margins that ships, on rendered people and on faces that a user brings later: two commands, tiny."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.evaluation.protocols.drawn import folder_rows
from pipeline.evaluation.protocols.pairs_file import write_rows
from pipeline.run.checkpoint import complete_steps
from tests.end_to_end.launcher import DEEPSPEED
from tests.end_to_end.stage import STAGES, run_stage
from tests.faces import write_faces
from tests.renderer import needs_renderer

pytestmark = needs_renderer

SHIPPED = STAGES / "studies" / "rendered_margins.yaml"
ARMS = ("cosface",)
SMALL = ("optimizer.steps=4", "optimizer.milestones=[]", "optimizer.warmup_steps=1", "data.global_batch=8")


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """Rendered people below data/, and the study that ships with one of its arms and seeds."""
    options = ("--people", 6, "--images", 3, "--seed", 1, "--size", "112x96", "--pairs", 20)
    assert run_stage("synthesise.py", tmp_path / "data" / "rendered", *options) == 0
    study = yaml.safe_load(SHIPPED.read_text())
    study |= {
        "recipe": str(SHIPPED.parent / study["recipe"]),
        "arms": {arm: study["arms"][arm] for arm in ARMS},
        "seeds": [1],
        "tables": [{"title": "Losses", "columns": {arm: arm for arm in ARMS}}],
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    return tmp_path


def run(scene: Path) -> str:
    """The study to its end; what it says on standard error."""
    command = [sys.executable, str(STAGES / "study.py"), "study.yaml", "--data", "data", "--out", "out"]
    for change in SMALL:
        command += ["--set", change]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{DEEPSPEED.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [*command, "--resamples", "20"], cwd=scene, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


def test_the_study_is_judged_on_rendered_people_and_on_real_faces_once_there_are_any(scene: Path) -> None:
    assert "study: without real, whose pairs are not in data" in run(scene)
    table = (scene / "out" / "study.md").read_text()
    assert "## Losses: rendered" in table and "## Losses: real" not in table
    assert "| seeds done | 1 of 1 |" in table
    checkpoints = {arm: scene / "out" / f"{arm}-seed1" for arm in ARMS}
    times = {path: path.stat().st_mtime_ns for run in checkpoints.values() for path in run.glob("checkpoints/*/*")}
    assert [complete_steps(run)[-1] for run in checkpoints.values()] == [4] * len(ARMS)

    faces = write_faces(scene / "data" / "real", identities=5, images=5, height=112, width=96)
    write_rows(folder_rows(faces, 2, 8, seed=0), scene / "data" / "real.tsv")
    assert "without real" not in run(scene)
    table = (scene / "out" / "study.md").read_text()
    assert "## Losses: rendered" in table and "## Losses: real" in table
    assert table.count("| seeds done | 1 of 1 |") == 2
    assert {path: path.stat().st_mtime_ns for path in times} == times  # nothing was trained again
