"""Results that keep their draws: what is compared, and what is not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.evaluation.drawn import by_name, digest_of
from pipeline.evaluation.reports.suite import templates_column
from pipeline.evaluation.reports.tables import drawn_rows
from pipeline.evaluation.results import Identification, TemplateResult, load_templates, save_summary
from pipeline.evaluation.scoring.draws import Draws
from pipeline.evaluation.scoring.rates import Rate, TarAtFar
from pipeline.files import NotWrittenError, write_file

NAMES = ("TAR at FAR 0.0001", "S1, rank 1")


def result(value: float, drawn: str, seed: int = 0) -> TemplateResult:
    """A network of which every draw of the people is `value` above the draw's own number."""
    people = value + np.random.default_rng(seed).normal(0, 0.05, (50, 2))
    draws = Draws(np.full(2, value), people, np.full((5, 2), value), np.full(2, 9.0))
    return TemplateResult(
        step=3,
        weights_sha256="",
        templates=12,
        genuine=6,
        impostors=30,
        tar=(TarAtFar(far=1e-4, tar=Rate(value=value, low=0, high=1), threshold=0.4),),
        galleries=(),
        drawn=drawn,
        draws=by_name(NAMES, draws),
    )


def test_draws_come_back_bit_for_bit_and_the_json_has_none(tmp_path: Path) -> None:
    kept = result(0.5, "same")
    file = save_summary(kept, tmp_path)
    assert "draws" not in file.read_text()
    found = load_templates(file)
    assert list(found.draws) == list(NAMES)
    for name, draws in kept.draws.items():
        for array, expected in zip(vars(found.draws[name]).values(), vars(draws).values(), strict=True):
            np.testing.assert_array_equal(array, expected)
    file.with_suffix(".npz").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"step-00000003.npz: not the draws of a result"):
        load_templates(file)
    arrays: dict[str, Any] = {"TAR|value_K": np.zeros(1)}
    np.savez(file.with_suffix(".npz"), **arrays)
    with pytest.raises(ValueError, match=r"step-00000003.npz: not the draws of a result"):
        load_templates(file)
    file.with_suffix(".npz").unlink()
    assert load_templates(file).draws == {}  # of an earlier version
    save_summary(kept, tmp_path)
    save_summary(kept.model_copy(update={"draws": {}}), tmp_path)
    assert load_templates(file).draws == {}, "those of the result before"


def test_a_difference_has_what_both_draws_share_taken_out() -> None:
    models = {"ours": result(0.5, "same"), "theirs": result(0.7, "same"), "others": result(0.6, "other people")}
    rows = {row.name: [cell.text for cell in row.values] for row in drawn_rows(models)}
    gain = "+20.00 (+20.0 to +20.0)"  # each network's own interval is 0.2 wide
    assert rows == {f"{name} above ours, points": ["–", gain, "–"] for name in NAMES}
    entries = templates_column("IJB-B", models).entries
    gained = entries["theirs"].gain
    assert gained is not None and gained.low == pytest.approx(0.2)
    assert entries["ours"].gain is None and entries["others"].gain is None
    assert drawn_rows({"ours": result(0.5, ""), "theirs": result(0.7, "")}) == []  # not known what was drawn
    assert drawn_rows({"ours": models["ours"]}) == []


def test_results_of_another_rule_or_of_other_distractors_do_not_stand_side_by_side() -> None:
    one = result(0.5, "same")
    assert one.compared != one.model_copy(update={"fusion": "N0D1F2"}).compared
    facts: dict[str, Any] = {
        "step": 3,
        "weights_sha256": "",
        "listing_sha256": "",
        "cmc": (),
        "tar": (),
        "confidence": 0.95,
    }
    found = [Identification(**facts, trials=9, identities=3, distractors=count) for count in (10, 20, 10)]
    assert found[0].compared == found[2].compared != found[1].compared


def test_statistics_that_only_one_has_are_not_compared() -> None:
    both, one = result(0.5, "same"), result(0.7, "same")
    fewer = one.model_copy(update={"draws": {NAMES[0]: one.draws[NAMES[0]]}})
    assert list(both.above(fewer)) == list(fewer.above(both)) == [NAMES[0]]


def test_on_a_full_disk_no_old_summary_stands_beside_new_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = save_summary(result(0.5, "same"), tmp_path)

    def full(path: Path, content: bytes, real: Callable[[Path, bytes], None] = write_file) -> None:
        if path.suffix == ".json":
            raise NotWrittenError(28, "No space left on device", str(path))
        real(path, content)

    monkeypatch.setattr("pipeline.evaluation.results.write_file", full)
    with pytest.raises(NotWrittenError):
        save_summary(result(0.7, "same"), tmp_path)
    assert not file.exists() and file.with_suffix(".npz").exists()


def test_a_digest_tells_words_and_arrays_apart() -> None:
    made = [
        digest_of(["a", 1]),
        digest_of(["a", 2]),
        digest_of(["a", 1], np.array([1, 2])),
        digest_of(["a", 1], np.array([[1, 2]])),
        digest_of(["a", 1], np.array([1]), np.array([2])),
        digest_of(["a", 1], np.array([1.0, 2.0])),
    ]
    assert len(set(made)) == len(made)
