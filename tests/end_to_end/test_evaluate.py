"""`stages/evaluate.py` as a user runs it: by path, from another folder, on a run folder with checkpoints."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from PIL import Image

from pipeline.backbones import build_backbone
from pipeline.evaluation.results import load
from pipeline.evaluation.verification import roc, tar_at_far

STAGES = Path(__file__).parents[2] / "stages"
SIZE = (32, 28)
RECIPE = """\
data: {shards: nowhere, global_batch: 8}
backbone: {name: sphereface4, embedding_dim: 16}
optimizer: {steps: 20, learning_rate: 0.1}
"""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Faces of six people, a pairs file, and a run with checkpoints of steps 0 and 20."""
    folder = tmp_path_factory.mktemp("scene")
    generator = np.random.default_rng(0)
    for person in range(6):
        face = generator.integers(0, 256, (*SIZE, 3))
        (folder / f"faces/p{person}").mkdir(parents=True)
        for shot in range(3):
            noisy = np.clip(face + generator.normal(0, 40, face.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / f"faces/p{person}/{shot}.jpg")
    lines = ["fold\tpath_a\tpath_b\tsame"]
    for person in range(6):
        other = (person + 1) % 6
        for shot in range(3):
            lines.append(f"{person % 3}\tp{person}/{shot}.jpg\tp{person}/{(shot + 1) % 3}.jpg\t1")
            lines.append(f"{person % 3}\tp{person}/{shot}.jpg\tp{other}/{shot}.jpg\t0")
    (folder / "held_out.tsv").write_text("\n".join(lines) + "\n")
    (folder / "run").mkdir()
    (folder / "run/recipe.yaml").write_text(RECIPE)
    (folder / "run/run.json").write_text(json.dumps({"image_size": SIZE, "command": "train"}))
    for step in (0, 20):
        write_checkpoint(folder / "run", step)
    return folder


def write_checkpoint(run: Path, step: int) -> None:
    torch.manual_seed(step)
    weights = build_backbone("sphereface4", 16, SIZE).state_dict()
    target = run / f"checkpoints/step-{step:08d}"
    target.mkdir(parents=True)
    tensors = {f"backbone.{name}": tensor for name, tensor in weights.items()}
    dcp.save(tensors, storage_writer=dcp.FileSystemWriter(target), no_dist=True)
    meta = {"step": step, "num_classes": 6, "embedding_dim": 16, "identities_sha256": "", "num_ranks": 1, "format": 1}
    (target / "meta.json").write_text(json.dumps(meta))


OPTIONS = ["run", "--images", "faces", "--pairs", "held_out.tsv", "--resamples", "20"]


def run_stage(name: str, *arguments: str) -> int:
    """The stage in this process, which is spared importing torch once more; returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(STAGES / name), run_name="__main__")
    return int(ended.value.code or 0)


def test_the_file_runs_by_path_from_another_folder(scene: Path) -> None:
    command = [sys.executable, str(STAGES / "evaluate.py"), *OPTIONS, "--step", "0", "--step", "last", "--report"]
    done = subprocess.run(command, cwd=scene, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    table = done.stdout.splitlines()
    assert table[0].split()[0] == "step"
    assert [line.split()[0] for line in table[1:]] == ["0", "20", "report:"]
    result = load(scene / "run/evaluations/held_out/step-00000020.json")
    assert f"{result.summary.verification.accuracy.value:.2%}" in table[2]
    assert tar_at_far(roc(result.pairs), 0.1) == result.summary.verification.tar[0].tar.value
    page = (scene / "run/report.html").read_text()
    assert "before training" in page
    assert "after step 20" in page


def test_only_what_changed_is_evaluated_again(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(scene)
    file = scene / "run/evaluations/held_out/step-00000020.json"

    def rewritten(*options: str) -> bool:
        before = file.stat().st_mtime_ns if file.exists() else 0
        assert run_stage("evaluate.py", *OPTIONS, *options) == 0
        return file.stat().st_mtime_ns > before

    rewritten()
    assert not rewritten()
    assert rewritten("--seed", "1")
    assert rewritten("--far", "0.1", "0.5")
    assert not rewritten("--far", "0.1", "0.5")
    assert rewritten("--far", "0.1", "0.5", "--force")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--step", "7"], "wanted one of [0, 20]"),
        (["--far", "0.01"], "far: got 0.01 with 18 different pairs"),
        (["--pairs", "none.tsv"], "cannot read none.tsv"),
        (["--images", "none"], "images: got none, wanted an existing folder"),
    ],
)
def test_a_fault_is_one_line_and_exit_code_1(
    scene: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(scene)
    assert run_stage("evaluate.py", *OPTIONS, *options) == 1
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith("evaluate: ")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_report_alone(scene: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(scene)
    assert run_stage("evaluate.py", *OPTIONS, "--name", "strangers") == 0
    assert (scene / "run/evaluations/strangers/step-00000020.json").exists()
    assert run_stage("report.py", "run", "--out", "other.html") == 0
    assert (scene / "other.html").read_text().startswith("<!doctype html>")
    capsys.readouterr()
    assert run_stage("report.py", "faces") == 1
    assert capsys.readouterr().err.startswith("report: faces: got no evaluation")
