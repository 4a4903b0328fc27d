"""The hardest pairs of a report: the worst of each kind, with their faces."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.evaluation.reports.hardest import face_uri, hardest_tiles
from tests.unit.evaluation.reports.test_report import make_evaluation


def test_the_hardest_pairs_are_the_worst_of_their_kind(tmp_path: Path) -> None:
    before, after = make_evaluation(tmp_path, 0, 0.1), make_evaluation(tmp_path, 90, 2.0)
    for same in (True, False):
        shown = [float(tile.scores[-1]) for tile in hardest_tiles([before, after], same)]
        every = np.sort(after.pairs.scores[after.pairs.same == same])
        worst = every[:8] if same else every[::-1][:8]
        np.testing.assert_allclose(shown, worst, atol=0.005)
    tile = hardest_tiles([before, after], same=False)[0]
    i = int(np.flatnonzero((after.path_a == tile.names[0]) & (after.path_b == tile.names[1]))[0])
    assert tile.scores == (f"{before.pairs.scores[i]:.2f}", f"{after.pairs.scores[i]:.2f}")
    threshold = after.summary.verification.thresholds[after.pairs.fold[i]]
    assert tile.wrong == (after.pairs.scores[i] >= threshold)
    assert tile.faces == ("", "")


def test_faces_are_jpeg_whatever_they_were(tmp_path: Path) -> None:
    picture = Image.new("L", (8, 9), 77)
    picture.save(tmp_path / "a.jpg")
    picture.save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("no image")
    jpeg = base64.b64decode(face_uri(tmp_path / "a.jpg").partition(",")[2])
    assert jpeg == (tmp_path / "a.jpg").read_bytes()
    png = Image.open(io.BytesIO(base64.b64decode(face_uri(tmp_path / "a.png").partition(",")[2])))
    assert (png.format, png.size) == ("JPEG", (8, 9))
    assert (face_uri(tmp_path / "a.txt"), face_uri(tmp_path / "none.jpg")) == ("", "")
