"""`stages/evaluate.py` as a user runs it: by path, from another folder, on a run folder with checkpoints."""

import html
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.stop import EXIT_REFUSED
from cluster.versions import how_to_install
from pipeline.evaluation.embedding.trained import load_trained
from pipeline.evaluation.results import load, load_identification
from pipeline.evaluation.scoring.verification import roc, tar_at_far
from tests.end_to_end.launcher import train_alone
from tests.end_to_end.stage import STAGES, run_stage

SIZE = (32, 28)
RECIPE = """\
data: {shards: shards, global_batch: 6}
backbone: {name: sphereface4, embedding_dim: 16}
optimizer: {steps: 20, learning_rate: 0.01}
log: {metrics_port: null}
"""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Faces of six people, a pairs file, and a run of 20 steps on one rank."""
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
    (folder / "recipe.yaml").write_text(RECIPE)
    run_python(folder, "shard.py", "faces", "shards")
    train_alone(folder, "--recipe", "recipe.yaml", "--run", "run")
    return folder


def run_python(folder: Path, stage: str, *arguments: str) -> str:
    """The stage as a process of its own, by path from `folder`; returns what it printed."""
    command = [sys.executable, str(STAGES / stage), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


OPTIONS = ["run", "--images", "faces", "--pairs", "held_out.tsv", "--resamples", "20"]


def test_a_run_folder_is_enough_without_its_shards(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(scene / "run", tmp_path / "run"))
    facts = json.loads((run / "run.json").read_text())
    assert facts.pop("image_size") == list(SIZE)
    kept = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(kept.replace(str(scene / "shards"), str(tmp_path / "shards")))  # not there
    assert load_trained(run, None).image_size == SIZE
    # A run of before that was recorded asks its shards, and names them when they are gone.
    (run / "run.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"shards/manifest\.json: not found"):
        load_trained(run, None)
    (run / "recipe.yaml").write_text(kept)
    monkeypatch.chdir(tmp_path)  # a recipe's paths do not depend on where one stands
    assert load_trained(run, None).image_size == SIZE


def test_the_file_runs_by_path_from_another_folder(scene: Path) -> None:
    table = run_python(scene, "evaluate.py", *OPTIONS, "--step", "0", "--step", "last", "--report").splitlines()
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
    file.write_text("{}")  # torn, or of an earlier version
    assert rewritten("--far", "0.1", "0.5")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--step", "7"], "wanted one of [0, 20]"),
        (["--step", "best"], "step: got 'best' without run/best.json, wanted a recipe with evaluation.sets"),
        (["--without", "none.tsv"], "none.tsv: cannot be read: No such file"),
        (["--far", "0.01"], "far: got 0.01 with 18 different pairs"),
        (["--pairs", "none.tsv"], "none.tsv: cannot be read: No such file"),
        (["--images", "none"], "images: got none, wanted an existing folder"),
    ],
)
def test_a_fault_is_one_line_and_exit_code_65(
    scene: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(scene)
    assert run_stage("evaluate.py", *OPTIONS, *options) == EXIT_REFUSED
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith("evaluate: ")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_other_rules_groups_and_rejects_are_reported(
    scene: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(scene)
    groups = ["path\tgroup", *(f"p{person}\t{'east' if person < 3 else 'west'}" for person in range(5))]
    Path("groups.tsv").write_text("\n".join(groups) + "\n")
    options = [*OPTIONS, "--name", "more", "--rules", "insightface", "--groups", "groups.tsv"]
    assert run_stage("evaluate.py", *options) == 0
    printed = capsys.readouterr()
    summary = load(scene / "run/evaluations/more/step-00000020.json").summary
    assert summary.insightface is not None
    assert f"step 20, InsightFace's rules: accuracy {summary.insightface.accuracy:.2%}" in printed.out
    assert "image and mirror summed" in printed.out
    assert "evaluate: 3 images without a group" in printed.err
    # Each image is in one pair with the next person: of five people in a row, four such are known, one across.
    assert [(group.name, group.genuine, group.impostors) for group in summary.groups] == [
        ("east", 9, 6),
        ("west", 6, 3),
        ("across groups", 0, 3),
    ]
    assert [curve.far for curve in summary.rejects] == [0.1]
    assert run_stage("report.py", "run", "--out", "more.html") == 0
    page = html.unescape(Path("more.html").read_text())
    for words in ("accuracy by InsightFace's rules", "Errors by group", "west, FAR 0.1", "error against reject rate"):
        assert words in page
    before = (scene / "run/evaluations/more/step-00000020.json").stat().st_mtime_ns
    Path("groups.tsv").write_text("\n".join(groups[:-1]) + "\n")
    assert run_stage("evaluate.py", *options) == 0
    assert (scene / "run/evaluations/more/step-00000020.json").stat().st_mtime_ns > before


def test_report_alone(scene: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(scene)
    assert run_stage("evaluate.py", *OPTIONS, "--name", "strangers") == 0
    assert (scene / "run/evaluations/strangers/step-00000020.json").exists()
    assert run_stage("report.py", "run", "--out", "other.html") == 0
    assert (scene / "other.html").read_text().startswith("<!doctype html>")
    capsys.readouterr()
    assert run_stage("report.py", "faces") == EXIT_REFUSED
    assert capsys.readouterr().err.startswith("report: faces: got no evaluation")


def test_embeddings_of_one_rank_and_of_two_are_the_same_rows(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    monkeypatch.chdir(scene)
    assert run_stage("embed.py", "run", "faces", "whole.parquet", "--step", "0") == 0
    for rank in ("0", "1"):
        for name, value in (("RANK", rank), ("WORLD_SIZE", "2"), ("LOCAL_RANK", rank), ("LOCAL_WORLD_SIZE", "2")):
            monkeypatch.setenv(name, value)
        assert run_stage("embed.py", "run", "faces", "parts", "--step", "0", "--batch-size", "5") == 0
    whole, parts = pq.read_table("whole.parquet"), pq.read_table("parts")
    assert len(list((scene / "parts").iterdir())) == 2
    assert parts.column("path").to_pylist() == whole.column("path").to_pylist()
    assert whole.column("path").to_pylist() == sorted(
        p.relative_to("faces").as_posix() for p in Path("faces").glob("*/*")
    )
    rows = [np.array(table.column("embedding").to_pylist()) for table in (whole, parts)]
    assert rows[0].shape == (18, 32)
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-5)


def test_export_writes_its_files(
    scene: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(scene)
    assert run_stage("export.py", "run", "out") == 0
    written = ["MODEL_CARD.md", "backbone.json", "backbone.onnx", "backbone.safetensors"]
    assert sorted(file.name for file in Path("out").iterdir()) == written
    assert json.loads(Path("out/backbone.json").read_text())["step"] == 20
    assert run_stage("export.py", "run", "small", "--precision", "int8") == EXIT_REFUSED
    assert "--precision: got no --images and --pairs, wanted both" in capsys.readouterr().err
    measured = ["--precision", "fp16", "--images", "faces", "--pairs", "held_out.tsv", "--calibration", "faces"]
    assert run_stage("export.py", "run", "small", *measured, "--pt2", "--raw-pixels") == 0
    assert {"backbone.fp16.onnx", "backbone.pt2"} <= {file.name for file in Path("small").iterdir()}


def test_a_network_of_another_origin_is_judged_beside_a_run(
    scene: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run's own export, its embeddings, and a table of them: the same numbers, with no difference to the run."""
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(scene)
    assert run_stage("export.py", "run", "exported") == 0
    assert run_stage("embed.py", "run", "faces", "made.parquet") == 0
    assert run_stage("evaluate.py", *OPTIONS) == 0
    judged = ["--images", "faces", "--pairs", "held_out.tsv", "--resamples", "20"]
    assert run_stage("evaluate.py", "onnx", "--onnx", "exported/backbone.onnx", *judged) == 0
    assert run_stage("evaluate.py", "table", "--embeddings", "made.parquet", *judged) == 0
    own = load(Path("run/evaluations/held_out/step-00000020.json"))
    for folder in ("onnx", "table"):
        other = load(Path(f"{folder}/evaluations/held_out/step-00000000.json"))
        np.testing.assert_allclose(other.pairs.scores, own.pairs.scores, atol=1e-4)
    assert run_stage("report.py", "run", "onnx", "table", "--out", "three.html") == 0
    assert "accuracy above run, points" in Path("three.html").read_text()
    capsys.readouterr()
    for folder, message in (
        ("run", "run: got the folder of a training run, wanted another for the results of made.parquet"),
        ("onnx", "onnx: got results of"),
    ):
        assert run_stage("evaluate.py", folder, "--embeddings", "made.parquet", *judged) == EXIT_REFUSED
        assert message in capsys.readouterr().err
    assert run_stage("evaluate.py", "w", "--weights", "w.pth", *judged) == EXIT_REFUSED
    assert "--weights and --network: got one without the other" in capsys.readouterr().err


def test_a_broken_image_costs_its_pairs_and_what_was_embedded_is_used_again(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(scene / "faces", tmp_path / "faces")
    for name in ("held_out.tsv", "run"):
        (tmp_path / name).symlink_to(scene / name)
    monkeypatch.chdir(tmp_path)
    Path("faces/p1/1.jpg").write_bytes(b"no image")
    assert run_stage("evaluate.py", *OPTIONS, "--name", "torn") == 0
    printed = capsys.readouterr().err
    assert "evaluate: 1 of 18 images left out: p1/1.jpg cannot be decoded: wanted images 32 high and 28 wide" in printed
    assert run_stage("embed.py", "run", "faces", "torn.parquet") == 0
    assert "images left out: p1/1.jpg cannot be decoded" in capsys.readouterr().err
    result = load(Path("run/evaluations/torn/step-00000020.json"))
    assert result.summary.left_out == ("p1/1.jpg",)
    assert len(result.pairs) == 36 - 4
    kept = sorted(Path("run/embeddings").rglob("*.npy"))
    before = [file.stat().st_mtime_ns for file in kept]
    for _ in range(2):
        assert run_stage("evaluate.py", *OPTIONS, "--name", "torn", "--seed", "1") == 0
        assert "1 of 18 images left out: p1/1.jpg" in capsys.readouterr().err
    assert [file.stat().st_mtime_ns for file in sorted(Path("run/embeddings").rglob("*.npy"))] == before
    Path("faces/p1/1.jpg").write_bytes((scene / "faces/p1/1.jpg").read_bytes())
    assert run_stage("evaluate.py", *OPTIONS, "--name", "torn", "--seed", "1") == 0
    assert load(Path("run/evaluations/torn/step-00000020.json")).summary.left_out == ()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_collapsed_network_is_judged(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: float
) -> None:
    """Its features are zeros, or the same for every face: half of the pairs are right, and nobody is found."""
    monkeypatch.chdir(tmp_path)
    paths = [f"p{person}/{shot}.jpg" for person in range(6) for shot in range(3)]
    np.savez("collapsed.npz", paths=np.array(paths), embeddings=np.full((18, 4), value, np.float32))
    source = ["results", "--embeddings", "collapsed.npz", "--resamples", "20"]
    faces = str(scene / "faces")
    assert run_stage("evaluate.py", *source, "--images", faces, "--pairs", str(scene / "held_out.tsv"), "--report") == 0
    result = load(Path("results/evaluations/held_out/step-00000000.json")).summary.verification
    assert (result.accuracy.value, result.auc.value, result.tar[0].tar.value) == (0.5, 0.5, 0)
    assert run_stage("identify.py", *source, "--probes", faces, "--distractors", faces, "--ranks", "3") == 0
    printed = capsys.readouterr()
    assert "rank-1               0.00%" in printed.out
    assert ("18 of 18 images are like no other, with features of zeros: p0/0.jpg, …" in printed.err) == (value == 0)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--device", "cuda:7", "got 'cuda:7', wanted one of cpu"),
        ("--device", "tpu", "got 'tpu', wanted one of cpu"),
        ("--name", "a/b", "got 'a/b', wanted a name without a slash"),
        ("--size", "112", "got '112', wanted height and width such as 112x96"),
    ],
)
def test_a_bad_option_is_refused_by_name(
    scene: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
    value: str,
    message: str,
) -> None:
    monkeypatch.chdir(scene)
    assert run_stage("evaluate.py", *OPTIONS, option, value) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stage", "arguments", "missing"),
    [("export.py", ["run", "out2"], "safetensors"), ("embed.py", ["run", "faces", "e.parquet"], "pyarrow")],
)
def test_a_missing_extra_is_named(
    scene: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stage: str,
    arguments: list[str],
    missing: str,
) -> None:
    monkeypatch.chdir(scene)
    for module in [
        name for name in sys.modules if name.startswith(("pipeline.export.", "pipeline.evaluation.embedding.parquet"))
    ]:
        monkeypatch.delitem(sys.modules, module)
    for name in (missing, f"{missing}.torch", f"{missing}.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    assert run_stage(stage, *arguments) == EXIT_REFUSED
    assert f"wanted: {how_to_install('export')}" in capsys.readouterr().err


def test_identification_among_distractors(
    scene: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(scene)
    Path("others").mkdir(exist_ok=True)
    for i in range(30):
        noise = np.random.default_rng(100 + i).integers(0, 256, (*SIZE, 3), np.uint8)
        Image.fromarray(noise).save(f"others/{i}.jpg")
    options = ["run", "--probes", "faces", "--distractors", "others", "--resamples", "20", "--ranks", "5"]
    assert run_stage("identify.py", *options) == 0
    printed = capsys.readouterr().out
    assert "step 20: 36 searches for 6 people among 30 distractors" in printed
    result = load_identification(Path("run/identifications/others/step-00000020.json"))
    assert f"{result.cmc[0].value:.2%}" in printed
    assert result.tar[0].far == 0.01
    before = Path("run/identifications/others/step-00000020.json").stat().st_mtime_ns
    assert run_stage("identify.py", *options) == 0
    assert Path("run/identifications/others/step-00000020.json").stat().st_mtime_ns == before
    drawn = {result.drawn}
    for other in (["--resamples", "30"], ["--seed", "1"]):  # its intervals are of other draws
        assert run_stage("identify.py", *options, *other) == 0
        drawn.add(load_identification(Path("run/identifications/others/step-00000020.json")).drawn)
    assert len(drawn) == 3
    assert run_stage("identify.py", *options, "--far", "0.1") == 0
    assert Path("run/identifications/others/step-00000020.json").stat().st_mtime_ns > before
    assert run_stage("identify.py", *options, "--far", "0.001") == EXIT_REFUSED
    assert "far: got 0.001 with 540 pairs of probe and distractor" in capsys.readouterr().err
