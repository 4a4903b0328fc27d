"""`stages/suite.py`: whatever sets are there, judged by the stages that judge one, in one table."""

import argparse
import csv
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cluster.stop import EXIT_REFUSED
from pipeline.backbones import BACKBONES
from pipeline.evaluation.protocols.drawn import folder_rows
from pipeline.evaluation.protocols.pairs_file import write_rows
from pipeline.evaluation.results import load
from pipeline.run.checkpoint import BACKBONE
from pipeline.run.folder import RunFolder
from pipeline.run.imported import write_imported
from stages.arguments import FORWARDED
from stages.suite import sets_in
from tests.end_to_end.stage import run_stage

pytest.importorskip("onnx")
from tests.unit.evaluation.embedding.test_sources import HEIGHT, WIDTH, write_model


def run_here(command: list[str], check: bool) -> Any:
    """In the place of `subprocess.run`."""
    assert not check and command[0] == sys.executable
    return subprocess.CompletedProcess(command, run_stage(*command[1:]))


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A network, and below val/ LFW as pairs, CFP-FP as .bin and IJB-C."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("subprocess.run", run_here)
    write_model(tmp_path / "net.onnx")
    generator = np.random.default_rng(0)
    faces = tmp_path / "val/lfw"
    for person in range(6):
        face = generator.integers(0, 256, (HEIGHT, WIDTH, 3))
        (faces / f"p{person}").mkdir(parents=True)
        for shot in range(3):
            noisy = np.clip(face + generator.normal(0, 90, face.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(faces / f"p{person}/{shot}.png")
    write_rows(folder_rows(faces, 2, 9, 0), tmp_path / "val/lfw.tsv")
    encoded = [(faces / f"p{i}/{shot}.png").read_bytes() for i in range(5) for shot in range(3)]
    images, same = [], []
    for i in range(20):
        other = 3 * (i % 5) + (i // 5 + 1) % 3 if i % 2 else (3 * (i % 5) + 4) % 15
        images += [encoded[3 * (i % 5) + i // 5 % 3], encoded[other]]
        same.append(bool(i % 2))
    (tmp_path / "val/cfp_fp.bin").write_bytes(pickle.dumps((images, same)))
    meta = tmp_path / "val/ijbc/meta"
    meta.mkdir(parents=True)
    shutil.copytree(faces, tmp_path / "val/ijbc/images")
    mentions = [f"p{p}/{s}.png {10 * p + s // 2} {s // 2}" for p in range(6) for s in range(3)]
    (meta / "ijbc_face_tid_mid.txt").write_text("\n".join(mentions) + "\n")
    pairs = [f"{10 * p} {10 * q + 1} {int(p == q)}" for p in range(6) for q in range(6)]
    (meta / "ijbc_template_pair_label.txt").write_text("\n".join(pairs) + "\n")
    return tmp_path


NETWORK = ("--onnx", "net.onnx", "--mean", 100, 110, 120, "--scale", 0.01, "--size", f"{HEIGHT}x{WIDTH}")
OPTIONS = ("--data", "val", "--resamples", 10, "--far", 0.1)


def test_what_is_there_is_judged_and_stands_in_one_table(scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_stage("suite.py", "results/theirs", *OPTIONS, *NETWORK) == 0
    printed = capsys.readouterr()
    missing = "AgeDB-30 (agedb_30.tsv or agedb_30.bin), CALFW (calfw.tsv or calfw.bin), CPLFW (cplfw.tsv or cplfw.bin)"
    assert f"suite: not in val: {missing}, IJB-B (ijbb/meta)" in printed.err
    with Path("suite/suite.csv").open(newline="") as stream:
        rows = {row["set"]: row for row in csv.DictReader(stream)}
    assert list(rows) == ["LFW", "CFP-FP", "average"]  # the few templates resolve no FAR of 1e-4
    lfw = load(scene / "results/theirs/evaluations/LFW/step-00000000.json")
    assert float(rows["LFW"]["value"]) == lfw.summary.verification.accuracy.value
    assert (scene / "results/theirs/ijb/ijbc/step-00000000.json").exists()
    assert "| theirs |" in Path("suite/suite.md").read_text()

    before = (scene / "results/theirs/evaluations/LFW/step-00000000.npz").stat().st_mtime_ns
    other = ("--onnx", "net.onnx", "--mean", 0, "--scale", 1, "--beside", "results/theirs")
    assert run_stage("suite.py", "results/raw", *OPTIONS, *other) == 0
    assert (scene / "results/theirs/evaluations/LFW/step-00000000.npz").stat().st_mtime_ns == before
    assert "| theirs above raw, points | " in Path("suite/suite.md").read_text()

    Path("results/theirs/evaluations/CFP-FP/step-00000000.json").write_text("{")
    capsys.readouterr()
    assert run_stage("suite.py", "results/raw", *OPTIONS, *other) == 0
    assert "theirs/evaluations/CFP-FP/step-00000000.json: not a complete evaluation" in capsys.readouterr().err
    (row,) = (line for line in Path("suite/suite.md").read_text().splitlines() if line.startswith("| theirs |"))
    lfw_cell, cfp_cell = (cell.strip() for cell in row.split("|")[2:4])
    assert lfw_cell.strip("*")[0].isdigit() and cfp_cell == "–"


@pytest.mark.usefixtures("scene")
def test_a_set_that_fails_does_not_cost_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    Path("val/cfp_fp.bin").write_bytes(b"no set")
    shutil.rmtree("val/ijbc")
    assert run_stage("suite.py", "results/theirs", *OPTIONS, *NETWORK) == 1
    assert "suite: CFP-FP was not judged, see above" in capsys.readouterr().err
    assert "LFW" in Path("suite/suite.md").read_text() and "CFP" not in Path("suite/suite.md").read_text()


@pytest.mark.usefixtures("scene")
def test_every_set_is_judged_at_the_checkpoint_that_is_the_last_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last that is whole; and a run that trains on saves others while its sets are judged."""
    backbone = BACKBONES["sphereface4"](name="sphereface4", embedding_dim=8)
    size = (HEIGHT, WIDTH)
    write_imported(Path("run"), backbone, backbone.build(size).state_dict(), size, {"file": "net.pth", "sha256": "0"})
    folder = RunFolder(Path("run"))

    def save(step: int) -> Path:
        return Path(shutil.copytree(folder.checkpoint(0), folder.checkpoint(step), dirs_exist_ok=True))

    def judge_and_save(command: list[str], check: bool) -> Any:
        done = run_here(command, check)
        save(7)
        return done

    (save(5) / BACKBONE).write_bytes(b"damaged")
    monkeypatch.setattr("subprocess.run", judge_and_save)
    shutil.rmtree("val/ijbc")
    assert run_stage("suite.py", "run", *OPTIONS) == 0
    found = sorted(str(file.relative_to(folder.evaluations)) for file in folder.evaluations.glob("*/*.json"))
    assert found == ["CFP-FP/step-00000000.json", "LFW/step-00000000.json"]


def test_loose_crops_are_aligned_and_fused_as_arcface_torch_does_it(tmp_path: Path) -> None:
    for folder in ("ijbb/meta", "ijbb/loose_crop", "ijbc/meta", "ijbc/images"):
        (tmp_path / folder).mkdir(parents=True)
    names = (*FORWARDED, "resamples")
    args = argparse.Namespace(run=Path("run"), data=tmp_path, out=Path("out"), far=[1e-4], **dict.fromkeys(names))
    found, missing = sets_in(args)
    assert len(missing) == 5
    loose, aligned = found
    assert (loose.results, aligned.results) == ("ijbb N1D1F2", "ijbc")  # the folders that stages/ijb.py writes to
    words = " ".join(map(str, loose.commands[0]))
    assert (
        f"--images {tmp_path}/ijbb/loose_crop --align --fuse N1D1F2 --meta {tmp_path}/ijbb/meta --far 0.0001" in words
    )
    assert "--align" not in aligned.commands[0]


def test_a_folder_without_sets_is_refused(scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_stage("suite.py", "results/theirs", "--data", scene / "results", *NETWORK) == EXIT_REFUSED
    assert "got none of the sets, wanted one of LFW (lfw.tsv or lfw.bin)" in capsys.readouterr().err


@pytest.mark.usefixtures("scene")
def test_what_is_not_there_is_refused_before_anything_is_judged(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_stage("suite.py", "results/theirs", *OPTIONS, *NETWORK, "--beside", "runs/tpyo") == EXIT_REFUSED
    words = "suite: --beside: got runs/tpyo, wanted the folder of a run, or of a network's results\n"
    assert capsys.readouterr().err == words
    assert run_stage("suite.py", "run", *OPTIONS) == EXIT_REFUSED
    assert capsys.readouterr().err.startswith("suite: run: got no recipe.yaml in it")
    assert not Path("results").exists() and not Path("run").exists()
