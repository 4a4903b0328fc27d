"""The exported files give the embeddings of the network they came from, and say how to feed it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

onnxruntime = pytest.importorskip("onnxruntime")
load_file = pytest.importorskip("safetensors.torch").load_file

from pipeline.backbones import BACKBONES  # noqa: E402
from pipeline.backbones.sphereface import SphereFaceBackbone  # noqa: E402
from pipeline.evaluation.embedding.trained import TrainedBackbone, digest_of  # noqa: E402
from pipeline.export.onnx import export  # noqa: E402


def make_trained(name: str, size: tuple[int, int]) -> TrainedBackbone:
    torch.manual_seed(0)
    module = BACKBONES[name](name=name, embedding_dim=24).build(size)
    for batch in torch.randn(3, 8, 3, *size):  # BatchNorm statistics of something other than nothing
        module(batch)
    return TrainedBackbone(module.eval(), name, 24, 70, size, digest_of(module.state_dict()))


@pytest.mark.parametrize(
    ("name", "size"), [("sphereface4", (112, 96)), ("sphereface10", (48, 32)), ("iresnet18", (112, 112))]
)
def test_onnx_equals_torch_at_every_batch_size(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    trained = make_trained(name, size)
    files = export(trained, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(file.name for file in files)
    session = onnxruntime.InferenceSession(str(files[0]), providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        images = torch.randn(batch, 3, *size)
        with torch.inference_mode():
            expected = trained.module(images).numpy()
        (found,) = session.run(["embeddings"], {"images": images.numpy()})
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_safetensors_hold_the_weights_bit_for_bit(tmp_path: Path) -> None:
    trained = make_trained("sphereface4", (48, 32))
    export(trained, tmp_path)
    loaded = load_file(tmp_path / "backbone.safetensors")
    assert digest_of(loaded) == trained.weights_sha256
    again = SphereFaceBackbone(name="sphereface4", embedding_dim=24).build((48, 32))
    again.load_state_dict(loaded)


def test_the_description_says_how_to_feed_it(tmp_path: Path) -> None:
    """Pixels prepared from the description alone give the embedding of pixels prepared by the decoder's formula."""
    trained = make_trained("sphereface4", (112, 96))
    export(trained, tmp_path)
    told = json.loads((tmp_path / "backbone.json").read_text())
    assert (told["step"], told["weights_sha256"], told["output"]["dimension"]) == (70, trained.weights_sha256, 24)
    given = told["input"]
    assert (given["height"], given["width"], given["channels"], given["layout"]) == (112, 96, "RGB", "NCHW")
    pixels = np.arange(256, dtype=np.float32)
    normalised = (pixels - given["normalisation"]["mean"]) * given["normalisation"]["scale"]
    np.testing.assert_array_equal(normalised, (pixels - 127.5) / 128)
    eyes = told["alignment"]["points_xy"][:2]
    assert told["alignment"]["order"][:2] == ["left eye", "right eye"]
    assert eyes == [[30.2946, 51.6963], [65.5318, 51.5014]]


@pytest.mark.parametrize(("size", "left_eye_x"), [((112, 112), 38.2946), ((64, 64), None)])
def test_alignment_is_told_only_where_there_is_a_published_one(
    tmp_path: Path, size: tuple[int, int], left_eye_x: float | None
) -> None:
    export(make_trained("sphereface4", size), tmp_path)
    alignment = json.loads((tmp_path / "backbone.json").read_text())["alignment"]
    assert (alignment and alignment["points_xy"][0][0]) == (left_eye_x and pytest.approx(left_eye_x))
