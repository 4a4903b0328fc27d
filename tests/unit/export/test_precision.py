"""Fewer bits: smaller files that are close to the first, and what they cost on pairs, as it is judged elsewhere."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import torch  # noqa: E402

from cluster.stop import EXIT_REFUSED  # noqa: E402
from pipeline.evaluation.embedding.feeding import Given  # noqa: E402
from pipeline.evaluation.embedding.onnx import load_onnx  # noqa: E402
from pipeline.evaluation.embedding.source import How, image_files  # noqa: E402
from pipeline.evaluation.protocols.drawn import folder_rows  # noqa: E402
from pipeline.evaluation.protocols.pairs_file import Row, write_rows  # noqa: E402
from pipeline.evaluation.scoring.verification import cosine_scores, kfold_accuracy  # noqa: E402
from pipeline.evaluation.sets import VerificationSet, read_set  # noqa: E402
from pipeline.export.description import Form  # noqa: E402
from pipeline.export.loss import inputs  # noqa: E402
from pipeline.export.package import Lower, export  # noqa: E402
from stages import export as stage  # noqa: E402
from tests.unit.export.trained import make_trained  # noqa: E402

SIZE = (32, 32)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> VerificationSet:
    """Pairs of ten people with three noisy pictures each."""
    folder = tmp_path_factory.mktemp("set")
    generator = np.random.default_rng(0)
    for person in range(10):
        face = generator.integers(0, 256, (*SIZE, 3))
        (folder / f"faces/p{person}").mkdir(parents=True)
        for shot in range(3):
            noisy = np.clip(face + generator.normal(0, 60, face.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / f"faces/p{person}/{shot}.png")
    write_rows(folder_rows(folder / "faces", 2, 12, 0), folder / "pairs.tsv")
    return read_set("mine", folder / "faces", folder / "pairs.tsv")


@pytest.fixture(scope="module", params=[Form(), Form(raw_pixels=True)], ids=["normalised", "raw"])
def exported(request: pytest.FixtureRequest, chosen: VerificationSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    calibration = image_files(chosen.images, chosen.pairs.paths)
    lower = Lower(("fp16", "int8"), chosen, calibration, How(batch_size=8))
    export(make_trained("sphereface4", SIZE), folder, folder / "casia", request.param, lower)
    return folder


def features(file: Path, chosen: VerificationSet) -> np.ndarray:
    source = load_onnx(file, Given(), torch.device("cpu"))
    return np.concatenate(list(source.features(image_files(chosen.images, chosen.pairs.paths), How(8))))


def test_each_file_is_smaller_and_close_to_the_first(exported: Path, chosen: VerificationSet) -> None:
    whole = exported / "backbone.onnx"
    first = features(whole, chosen)
    # int8: 0.97 on a processor without products of bytes, 0.99 on others
    for name, size, near in (("fp16", 0.55, 0.9999), ("int8", 0.4, 0.95)):
        file = exported / f"backbone.{name}.onnx"
        assert file.stat().st_size < size * whole.stat().st_size
        found = features(file, chosen)
        cosines = np.sum(first * found, axis=1) / np.linalg.norm(first, axis=1) / np.linalg.norm(found, axis=1)
        assert cosines.min() > near
        model = onnx.load(str(file))
        assert model.ir_version == 8
        used = {node.domain for node in model.graph.node}
        assert {entry.domain for entry in model.opset_import} == used | {""}


def test_the_loss_is_that_of_the_file_on_the_set(exported: Path, chosen: VerificationSet) -> None:
    told = json.loads((exported / "backbone.json").read_text())["precisions"]
    assert told.pop("set") == "mine"
    assert list(told) == ["backbone.onnx", "backbone.fp16.onnx", "backbone.int8.onnx"]
    accuracies = {}
    for name, facts in told.items():
        pairs = chosen.pairs
        scores = cosine_scores(features(exported / name, chosen), pairs.a, pairs.b)
        accuracies[name] = kfold_accuracy(pairs.scored(scores)).mean
        assert facts["accuracy"] == pytest.approx(accuracies[name], abs=1e-12)
    for name in list(told)[1:]:
        gain = accuracies[name] - accuracies["backbone.onnx"]
        assert told[name]["above_float32"] == pytest.approx(gain, abs=1e-12)
        assert told[name]["low"] <= gain <= told[name]["high"]
    inside = {entry.key: entry.value for entry in onnx.load(str(exported / "backbone.int8.onnx")).metadata_props}
    assert json.loads(inside["precisions"])["backbone.int8.onnx"]["accuracy"] == accuracies["backbone.int8.onnx"]
    card = (exported / "MODEL_CARD.md").read_text()
    assert "| backbone.int8.onnx |" in card and "judged on mine" in card


def test_ranges_are_those_of_the_images_that_decode(chosen: VerificationSet, tmp_path: Path) -> None:
    shutil.copytree(chosen.images, tmp_path / "faces")
    (tmp_path / "faces" / chosen.pairs.paths[1]).write_bytes(b"no image")
    onnx_file = tmp_path / "backbone.onnx"
    export(make_trained("sphereface4", SIZE), tmp_path, tmp_path / "casia", Form())
    found = list(inputs(onnx_file.read_bytes(), image_files(tmp_path / "faces", chosen.pairs.paths[:3]), How(2)))
    whole = list(inputs(onnx_file.read_bytes(), image_files(chosen.images, chosen.pairs.paths[:3]), How(1)))
    assert torch.equal(torch.cat(found), torch.cat([whole[0], whole[2]]))


def test_folders_of_frames_are_no_measure(chosen: VerificationSet, tmp_path: Path) -> None:
    shutil.copytree(chosen.images, tmp_path / "faces")
    shutil.copytree(chosen.images / "p0", tmp_path / "faces" / "p0" / "video")
    rows = [Row("1", "p0/video", "p1/0.png", False), Row("1", "p2/0.png", "p2/1.png", True)]
    write_rows([*rows, *(row._replace(fold="2") for row in rows)], tmp_path / "pairs.tsv")
    measured = read_set("frames", tmp_path / "faces", tmp_path / "pairs.tsv")
    lower = Lower(("fp16",), measured, image_files(chosen.images, chosen.pairs.paths[:2]), How(batch_size=8))
    with pytest.raises(ValueError, match="faces: got folders of frames, wanted images"):
        export(make_trained("sphereface4", SIZE), tmp_path / "out", tmp_path, Form(), lower)


def test_an_image_without_features_is_named(chosen: VerificationSet, tmp_path: Path) -> None:
    calibration = image_files(chosen.images, chosen.pairs.paths[:2])
    lower = Lower(("fp16",), chosen, calibration, How(batch_size=8))
    with pytest.raises(ValueError, match=r"p\d/\d.png: got no features, wanted images 48 high and 32 wide"):
        export(make_trained("sphereface4", (48, 32)), tmp_path / "out", tmp_path, Form(), lower)
    assert not list((tmp_path / "out").iterdir())


def export_with(options: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, list[Lower | None]]:
    """The code of the stage with these options, and the precisions that it would have exported in."""
    asked: list[Lower | None] = []

    def exported(*given: Any) -> list[Path]:
        asked.append(given[4])
        return []

    monkeypatch.setattr(sys, "argv", ["export.py", "run", "out", *options])
    monkeypatch.setattr(stage, "load_trained", lambda *_: None)
    monkeypatch.setattr("pipeline.export.package.export", exported)
    return stage.main(), asked


@pytest.mark.parametrize("count", [3, 512, 513, 1000])
def test_faces_that_set_the_ranges_are_of_all_people(
    chosen: VerificationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    for number in range(count):
        file = tmp_path / f"p{number // 10:03d}/{number:04d}.jpg"
        file.parent.mkdir(exist_ok=True)
        file.touch()
    options = ["--precision", "int8", "--images", chosen.images, "--pairs", chosen.file, "--calibration", tmp_path]
    code, (lower,) = export_with(list(map(str, options)), monkeypatch)
    assert code == 0 and lower is not None
    names = lower.calibration.names
    assert len(names) <= stage.CALIBRATION_IMAGES < 2 * len(names) or len(names) == count
    assert {name[:4] for name in names} == {f"p{number // 10:03d}" for number in range(count)}


def test_a_set_without_a_precision_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, asked = export_with(["--images", "faces", "--pairs", "pairs.tsv"], monkeypatch)
    assert (code, asked) == (EXIT_REFUSED, [])
    assert capsys.readouterr().err == "export: --images, --pairs: got it without --precision, wanted both\n"
