"""An export at 112 × 112 in the packages that others load it with: InsightFace's, and OpenCV's dnn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnx")
cv2 = pytest.importorskip("cv2")
insightface = pytest.importorskip("insightface.model_zoo.arcface_onnx")

from pipeline.evaluation.embedding.trained import TrainedBackbone  # noqa: E402
from pipeline.export.description import Form  # noqa: E402
from pipeline.export.package import export  # noqa: E402
from tests.unit.export.trained import make_trained  # noqa: E402

FORMS = {
    "plain": Form(),
    "pixels": Form(raw_pixels=True),
    "both": Form(raw_pixels=True, mirror=True, opset=17),
}


@pytest.fixture(scope="module")
def trained() -> TrainedBackbone:
    return make_trained("sphereface4", (112, 112))


@pytest.fixture(scope="module")
def files(trained: TrainedBackbone, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    for name, form in FORMS.items():
        export(trained, folder / name, folder, form)
    return {name: folder / name / "backbone.onnx" for name in FORMS}


@pytest.fixture(scope="module")
def picture() -> Any:
    """A face as these packages hold one: blue first."""
    return np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)


def expected(trained: TrainedBackbone, picture: Any, form: Form) -> Any:
    pixels = torch.from_numpy(picture[..., ::-1].transpose(2, 0, 1).copy())[None].float()
    images = (pixels - 127.5) / 128
    with torch.inference_mode():
        found = trained.module(images).numpy()
        return np.concatenate([found, trained.module(images.flip(3)).numpy()], axis=1) if form.mirror else found


@pytest.mark.parametrize("name", FORMS)
def test_opencv(files: dict[str, Path], trained: TrainedBackbone, picture: Any, name: str) -> None:
    form = FORMS[name]
    mean, scale = (0.0, 1.0) if form.raw_pixels else (127.5, 1 / 128)
    network = cv2.dnn.readNetFromONNX(str(files[name]))
    network.setInput(cv2.dnn.blobFromImage(picture, scale, (112, 112), (mean, mean, mean), swapRB=True))
    wanted = expected(trained, picture, form)
    np.testing.assert_allclose(network.forward(), wanted, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("name", ["pixels", "both"])
def test_insightface_feeds_raw_pixels_rightly(
    files: dict[str, Path], trained: TrainedBackbone, picture: Any, name: str
) -> None:
    model = insightface.ArcFaceONNX(str(files[name]))
    assert (model.input_mean, model.input_std, model.input_size) == (0, 1, (112, 112))
    wanted = expected(trained, picture, FORMS[name])
    np.testing.assert_allclose(model.get_feat(picture), wanted, atol=1e-4 * np.abs(wanted).max())


def test_insightface_divides_by_127_5_what_is_no_raw_pixel(
    files: dict[str, Path], trained: TrainedBackbone, picture: Any
) -> None:
    """Its own networks want it so; ours are trained with 128, and the embedding hardly turns."""
    model = insightface.ArcFaceONNX(str(files["plain"]))
    assert (model.input_mean, model.input_std) == (127.5, 127.5)
    found, wanted = model.get_feat(picture)[0], expected(trained, picture, FORMS["plain"])[0]
    assert found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted) > 0.9999
