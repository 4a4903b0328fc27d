"""A verification set without a network: which pairs are judged, and which stored results are of the same question."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluation.protocols.pairs import assemble
from pipeline.evaluation.protocols.pairs_file import Row
from pipeline.evaluation.results import save
from pipeline.evaluation.scoring.quality import reject_curve
from pipeline.evaluation.sets import (
    VerificationSet,
    accuracies_of,
    folder_of,
    is_finished,
    judge,
    leave_out,
    stored,
)
from pipeline.recipe.file import recipe_of
from pipeline.run.folder import RunFolder
from tests.unit.run.saved import save_steps, spoil

PEOPLE = 8


def pairs_set() -> VerificationSet:
    """In each of two folds, people's own two images, and 20 pairs of strangers: 40 that resolve a rate of 0.026."""
    rows = []
    for fold, first in (("1", 0), ("2", 4)):
        people = range(first, first + 4)
        rows += [Row(fold, f"p{one}/0.jpg", f"p{one}/1.jpg", True) for one in people]
        strangers = [(one, other) for one in people for other in people if one != other]
        rows += [Row(fold, f"p{one}/0.jpg", f"p{other}/1.jpg", False) for one, other in strangers]
        rows += [
            Row(fold, f"p{one}/{i}.jpg", f"p{other}/{i}.jpg", False) for one, other in strangers[:4] for i in (0, 1)
        ]
    return VerificationSet("lfw", Path("faces"), Path("pairs.tsv"), "ab" * 32, assemble(rows, "here"), (0.1, 0.026))


def features(chosen: VerificationSet) -> np.ndarray:
    """Of people who are not easily told apart, in lengths of 1 to 3."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(PEOPLE, 6))
    rows = centres[chosen.pairs.identity] + generator.normal(size=(len(chosen.pairs.paths), 6))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True) * generator.uniform(1, 3, (len(rows), 1))


def test_an_image_without_features_costs_its_pairs_and_a_rate_that_they_alone_resolved() -> None:
    chosen = pairs_set()
    assert chosen.pairs.impostors == 40
    rows, settings = features(chosen), chosen.settings("", 5)
    whole = judge(chosen, rows, settings, 3)
    assert whole.summary.left_out == () and [tar.far for tar in whole.summary.verification.tar] == [0.1, 0.026]
    lost = chosen.pairs.paths.index("p6/0.jpg")
    rows[lost, 4:] = np.nan
    found = judge(chosen, rows, settings, 3)
    assert found.summary.left_out == ("p6/0.jpg",)
    kept = (whole.path_a != "p6/0.jpg") & (whole.path_b != "p6/0.jpg")
    assert found.path_a.tolist() == whole.path_a[kept].tolist()
    np.testing.assert_array_equal(found.pairs.scores, whole.pairs.scores[kept])
    assert found.summary.verification.impostors == 36
    assert [tar.far for tar in found.summary.verification.tar] == [0.1]
    assert found.compared != whole.compared
    summary = whole.summary.model_copy(update={"settings": settings.model_copy(update={"without_sha256": "some"})})
    assert replace(whole, summary=summary).compared != whole.compared


def test_a_pair_is_as_good_as_its_worse_image() -> None:
    chosen = pairs_set()
    rows = features(chosen)
    found = judge(chosen, rows, chosen.settings("", 5), 3)
    norms = np.linalg.norm(rows, axis=1)
    worse = np.array([min(norms[a], norms[b]) for a, b in zip(chosen.pairs.a, chosen.pairs.b, strict=True)])
    assert found.summary.rejects == tuple(
        reject_curve(found.pairs, worse, tar) for tar in found.summary.verification.tar
    )
    assert len(set(found.summary.rejects[0].fnmr)) > 1


def test_people_left_out_make_another_set_whose_rates_are_resolved_anew() -> None:
    chosen = pairs_set()
    less, again = (leave_out(chosen, people) for people in (["p0", "p7"], ["p7", "p0"]))
    assert {"p0", "p7"}.isdisjoint(path.split("/")[0] for path in less.pairs.paths)
    assert less.fars == (0.1,) and less.settings("", 5) == again.settings("", 5)
    assert less.settings("", 5) != chosen.settings("", 5)
    with pytest.raises(ValueError, match=r"far: got 0\.026 with \d+ different pairs"):
        leave_out(chosen, ["p0", "p7"], (0.1, 0.026))


def test_a_stored_result_is_of_the_same_settings_or_at_least_of_the_same_pairs(tmp_path: Path) -> None:
    chosen = pairs_set()
    settings = chosen.settings("one network", 5)
    save(judge(chosen, features(chosen), settings, 7), folder_of(tmp_path, chosen))
    found = stored(tmp_path, chosen, 7, settings)
    assert found is not None and found.step == 7
    assert stored(tmp_path, chosen, 8, settings) is None
    for other in (chosen.settings("another network", 5), chosen.settings("one network", 6)):
        assert stored(tmp_path, chosen, 7, other) is None
    accuracy = found.summary.verification.accuracy.value
    for same in (chosen, replace(chosen, fars=(0.5,)), replace(chosen, rules="insightface")):
        assert accuracies_of(tmp_path, same) == {7: accuracy}
    for other_set in (
        replace(chosen, sha256="0" * 64),
        replace(chosen, without="a"),
        replace(chosen, images=Path("x")),
    ):
        assert accuracies_of(tmp_path, other_set) == {}
    (folder_of(tmp_path, chosen) / "step-00000009.json").write_text("{}")  # of another version
    assert accuracies_of(tmp_path, chosen) == {7: accuracy}


def test_a_run_is_finished_if_its_last_checkpoint_is_whole_and_was_evaluated_on_every_set(tmp_path: Path) -> None:
    chosen = pairs_set()
    recipe = recipe_of(
        {
            "data": {"shards": "/s", "global_batch": 8},
            "backbone": {"name": "sphereface4"},
            "optimizer": {"steps": 9, "learning_rate": 0.1},
        }
    )
    save_steps(tmp_path, 0, 5)
    assert not is_finished(tmp_path, recipe, [])
    save_steps(tmp_path, 9)
    assert is_finished(tmp_path, recipe, []) and not is_finished(tmp_path, recipe, [chosen])
    for step, done in ((5, False), (9, True)):
        save(judge(chosen, features(chosen), chosen.settings("", 5), step), folder_of(tmp_path, chosen))
        assert is_finished(tmp_path, recipe, [chosen]) == done
    spoil(RunFolder(tmp_path).checkpoint(9) / "backbone.safetensors")
    assert not is_finished(tmp_path, recipe, [chosen])
