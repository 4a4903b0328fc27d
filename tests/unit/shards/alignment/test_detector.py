"""Which face is taken, what has none, and what is said without the detector."""

import numpy as np
import pytest

from pipeline.shards.alignment.detector import Face, detect, nearest_centre
from pipeline.shards.format.manifest import ShardError
from tests.detector import needs_detector


def test_the_face_nearest_the_centre_is_taken() -> None:
    def face(x: float, y: float) -> Face:
        return Face(np.array([x - 5, y - 5, x + 5, y + 8]), np.zeros((5, 2)))

    faces = [face(10, 10), face(60, 45), face(90, 90)]
    assert nearest_centre(faces, 100, 100) is faces[1]
    assert faces[1].side == 10


@needs_detector
@pytest.mark.parametrize("shape", [(50, 50), (10, 10), (12, 300), (300, 300)])
def test_an_image_without_a_face_has_none(shape: tuple[int, int]) -> None:
    assert detect(np.zeros((*shape, 3), np.uint8)) == []


def test_without_the_detector_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.shards.alignment import detector

    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(detector, "import_module", absent)
    detector.load_detector.cache_clear()
    with pytest.raises(
        ShardError, match=r"alignment needs mtcnn-runtime: pip install -e '.*\[align\]' \(onnxruntime\)"
    ):
        detect(np.zeros((9, 9, 3), np.uint8))
