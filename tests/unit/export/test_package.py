"""The exported files give the embeddings of the network they came from, and say how to feed it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
load_file = pytest.importorskip("safetensors.torch").load_file

from pipeline.backbones.sphereface import SphereFaceBackbone  # noqa: E402
from pipeline.evaluation.embedding.feeding import Given  # noqa: E402
from pipeline.evaluation.embedding.onnx import load_onnx  # noqa: E402
from pipeline.evaluation.embedding.trained import digest_of  # noqa: E402
from pipeline.export import package  # noqa: E402
from pipeline.export.description import Form  # noqa: E402
from pipeline.export.package import export  # noqa: E402
from tests import tiny_vit  # noqa: E402, F401 - a backbone by name
from tests.unit.export.trained import make_trained  # noqa: E402


@pytest.mark.parametrize(
    ("name", "size", "form", "ir_version"),
    [
        ("sphereface4", (112, 96), Form(), 8),
        ("sphereface10", (48, 32), Form(raw_pixels=True, mirror=True, opset=17), 8),
        ("mobilefacenet", (112, 112), Form(mirror=True, opset=21), 10),
        ("tiny_vit", (36, 27), Form(mirror=True), 8),
    ],
)
def test_onnx_equals_torch_at_every_batch_size(
    tmp_path: Path, name: str, size: tuple[int, int], form: Form, ir_version: int
) -> None:
    trained = make_trained(name, size)
    files = export(trained, tmp_path, tmp_path / "run", form)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(file.name for file in files)
    model = onnx.load(str(files[0]))
    # onnxruntime 1.15 loads 8 and refuses 10: the version is the oldest that has the opset.
    assert (model.ir_version, [entry.version for entry in model.opset_import]) == (ir_version, [form.opset])
    session = onnxruntime.InferenceSession(str(files[0]), providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        pixels = torch.randint(0, 256, (batch, 3, *size)).float()
        images = (pixels - 127.5) / 128
        with torch.inference_mode():
            expected = trained.module(images).numpy()
            if form.mirror:
                expected = np.concatenate([expected, trained.module(images.flip(3)).numpy()], axis=1)
        (found,) = session.run(["embeddings"], {"images": (pixels if form.raw_pixels else images).numpy()})
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("form", [Form(), Form(raw_pixels=True)])
def test_the_metadata_are_enough_to_feed_the_file(tmp_path: Path, form: Form) -> None:
    trained = make_trained("sphereface4", (32, 32))
    export(trained, tmp_path, tmp_path / "casia", form)
    (tmp_path / "backbone.json").unlink()
    source = load_onnx(tmp_path / "backbone.onnx", Given(), torch.device("cpu"))
    images = (torch.randint(0, 256, (3, 3, 32, 32)).float() - 127.5) / 128  # as the decoder gives them
    with torch.inference_mode():
        expected = trained.module(images)
        assert (source.module(images) - expected).abs().max() <= 1e-4 * expected.abs().max()
    told = {entry.key: entry.value for entry in onnx.load(str(tmp_path / "backbone.onnx")).metadata_props}
    assert (told["backbone"], told["run"], told["step"]) == ("sphereface4", "casia", "70")
    assert json.loads(told["output"])["dimension"] == 24


def test_the_graph_of_torch_export_gives_the_same(tmp_path: Path) -> None:
    trained = make_trained("sphereface4", (32, 32))
    export(trained, tmp_path, tmp_path, Form(mirror=True), pt2=True)
    module = torch.export.load(tmp_path / "backbone.pt2").module()
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        expected = torch.cat([trained.module(images), trained.module(images.flip(3))], dim=1)
        torch.testing.assert_close(module(images), expected)


def test_safetensors_hold_the_weights_bit_for_bit(tmp_path: Path) -> None:
    trained = make_trained("sphereface4", (48, 32))
    export(trained, tmp_path, tmp_path, Form())
    loaded = load_file(tmp_path / "backbone.safetensors")
    assert digest_of(loaded) == trained.weights_sha256
    again = SphereFaceBackbone(name="sphereface4", embedding_dim=24).build((48, 32))
    again.load_state_dict(loaded)


def test_a_place_that_takes_nothing_is_refused_before_anything_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "program_of", None)
    (tmp_path / "out").touch()
    with pytest.raises(FileExistsError):
        export(make_trained("sphereface4", (32, 32)), tmp_path / "out", tmp_path, Form())


def test_an_opset_that_cannot_be_had_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="opset: got 11, wanted 17 to 23"):
        export(make_trained("sphereface4", (32, 32)), tmp_path / "out", tmp_path, Form(opset=11))
    assert not (tmp_path / "out").exists()
