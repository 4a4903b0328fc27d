"""The description says how to feed the network, and what it reached with these weights."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluation.results import Summary, save
from pipeline.export.description import Form, description, evaluated, metadata
from tests.unit.evaluation.test_results import make_evaluation
from tests.unit.export.trained import make_trained


def test_it_says_how_to_feed_the_network() -> None:
    """Pixels prepared from the description alone are those of the decoder's formula."""
    trained = make_trained("sphereface4", (112, 96))
    told = description(trained, Form(), "casia", {})
    assert (told["run"], told["step"], told["weights_sha256"]) == ("casia", 70, trained.weights_sha256)
    assert told["output"]["dimension"] == 24
    given = told["input"]
    assert (given["height"], given["width"], given["channels"], given["layout"]) == (112, 96, "RGB", "NCHW")
    pixels = np.arange(256, dtype=np.float32)
    normalised = (pixels - given["normalisation"]["mean"]) * given["normalisation"]["scale"]
    np.testing.assert_array_equal(normalised, (pixels - 127.5) / 128)
    eyes = told["alignment"]["points_xy"][:2]
    assert told["alignment"]["order"][:2] == ["left eye", "right eye"]
    assert eyes == ((30.2946, 51.6963), (65.5318, 51.5014))


def test_it_says_what_the_graph_does_itself() -> None:
    told = description(make_trained("sphereface4", (32, 32)), Form(raw_pixels=True, mirror=True), "casia", {})
    assert (told["input"]["normalisation"]["mean"], told["input"]["normalisation"]["scale"]) == (0, 1)
    assert told["output"]["dimension"] == 48
    assert "the image and of its mirror, concatenated" in told["output"]["comparison"]


@pytest.mark.parametrize(("size", "left_eye_x"), [((112, 112), 38.2946), ((64, 64), None)])
def test_alignment_is_told_only_where_there_is_a_published_one(size: tuple[int, int], left_eye_x: float | None) -> None:
    alignment = description(make_trained("sphereface4", size), Form(), "casia", {})["alignment"]
    assert (alignment and alignment["points_xy"][0][0]) == (left_eye_x and pytest.approx(left_eye_x))


def test_only_what_these_weights_reached_is_told(tmp_path: Path) -> None:
    trained = make_trained("sphereface4", (32, 32))
    evaluation = make_evaluation(70)
    for name, digest in (("lfw", trained.weights_sha256), ("other", "of other weights")):
        settings = evaluation.summary.settings.model_copy(update={"weights_sha256": digest})
        summary = evaluation.summary.model_copy(update={"settings": settings})
        save(replace(evaluation, summary=summary), tmp_path / "evaluations" / name)
    save(make_evaluation(80), tmp_path / "evaluations/later")
    (tmp_path / "evaluations/torn").mkdir()
    (tmp_path / "evaluations/torn/step-00000070.json").write_text("{")
    found: dict[str, Summary] = evaluated(tmp_path, trained)
    assert list(found) == ["lfw"]
    told = metadata(description(trained, Form(), "casia", found))
    accuracy = evaluation.summary.verification.accuracy
    expected = {"value": accuracy.value, "low": accuracy.low, "high": accuracy.high}
    assert json.loads(told["accuracy"]) == {"lfw": expected}
    assert told["backbone"] == "sphereface4"
