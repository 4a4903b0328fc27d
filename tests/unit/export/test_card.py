"""The model card has what is known of a network, and says what is not."""

import json
from pathlib import Path

from pipeline.evaluation.scoring.estimates import Estimate
from pipeline.evaluation.scoring.groups import ErrorsAtFar, GroupErrors
from pipeline.evaluation.scoring.rates import Rate
from pipeline.export.card import model_card
from pipeline.export.description import Form, description
from pipeline.export.loss import Judged
from tests.unit.evaluation.test_results import make_evaluation
from tests.unit.export.trained import make_trained


def test_the_card_has_training_evaluation_groups_and_precisions(tmp_path: Path) -> None:
    facts = {"ranks": 2, "device": "cpu", "started": "today", "shards": {"samples": 4074, "identities": 524}}
    (tmp_path / "run.json").write_text(json.dumps(facts))
    (tmp_path / "recipe.yaml").write_text("backbone: {name: sphereface4}\n")
    rate = Rate(value=0.25, low=0.2, high=0.3)
    east = GroupErrors(name="east", genuine=3, impostors=4, errors=(ErrorsAtFar(far=0.1, fmr=rate, fnmr=None),))
    summary = make_evaluation(70).summary.model_copy(update={"groups": (east,)})
    told = description(make_trained("sphereface4", (112, 96)), Form(), "casia", {"lfw": summary})
    losses = {
        "backbone.onnx": Judged(4_000_000, Estimate((0.9,), 0.8, 1.0), None),
        "backbone.int8.onnx": Judged(1_000_000, Estimate((0.89,), 0.79, 0.99), Estimate((-0.01,), -0.02, 0.0)),
    }
    card = model_card({**told, "precisions": {"set": "lfw"}}, tmp_path, {"lfw": summary}, losses)
    accuracy = summary.verification.accuracy
    for words in (
        "# sphereface4 of casia, step 70",
        "(pixel - 127.5) × 0.0078125",
        "4,074 images of 524 people.",
        "backbone: {name: sphereface4}",
        f"| lfw | 120 | 12 | {accuracy.value:.2%} ({accuracy.low:.1%} to {accuracy.high:.1%}) |",
        "| lfw, FAR 0.1 | east | 25.00% (20.0% to 30.0%) | – |",
        "| backbone.int8.onnx | 1.0 | 89.00% (79.0% to 99.0%) | -1.00 (-2.0 to +0.0) |",
    ):
        assert words in card, words


def test_what_changed_on_the_way_is_said(tmp_path: Path) -> None:
    """The recipe in the folder is that of the last start, which need not have trained most of it."""
    told = description(make_trained("sphereface4", (32, 32)), Form(), "casia", {})
    starts = [{"step": 0, "changes": []}, {"step": 1200, "changes": ["head.margin.name: a → b", "ranks: 2 → 1"]}]
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "history.jsonl").write_text(json.dumps(starts[0]) + "\n")
    assert "had changed" not in model_card(told, tmp_path, {}, {})
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(start) + "\n" for start in starts))
    card = model_card(told, tmp_path, {}, {})
    assert "had changed:\n\n- at step 1,200: head.margin.name: a → b, ranks: 2 → 1\n" in card


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    told = description(make_trained("sphereface4", (32, 32)), Form(), "casia", {})
    card = model_card(told, tmp_path, {}, {})
    for words in ("Not recorded.", "None of these weights", "Errors by group of people were not measured.", "licence"):
        assert words in card
    assert "alignment" not in card and "Precisions" not in card
