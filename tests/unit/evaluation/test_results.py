"""An evaluation's summary agrees with its scores, and comes back from disk as it was saved."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluation.results import Centred, Evaluation, Settings, Summary, load, save
from pipeline.evaluation.scoring.angles import class_angles
from pipeline.evaluation.scoring.bootstrap import identity_draws, people_of
from pipeline.evaluation.scoring.rates import verify
from pipeline.evaluation.scoring.verification import ScoredPairs, attained_tar, auc, kfold_accuracy, roc

CENTRED = Centred(accuracy=0.625, deviation=0.0375)
SETTINGS = Settings(
    images="faces", pairs="p.tsv", pairs_sha256="00", weights_sha256="11", far=(0.1,), resamples=20, seed=3
)


def make_pairs(seed: int = 0) -> ScoredPairs:
    generator = np.random.default_rng(seed)
    a, b = generator.integers(12, size=(2, 120))
    b = np.where(np.arange(120) % 2, a, (a + 1 + b % 11) % 12)
    scores = np.tanh(generator.normal(0.8 * (a == b), 1))
    return ScoredPairs.of(scores, a == b, np.arange(120) // 40, identity_a=a, identity_b=b)


def make_evaluation(step: int) -> Evaluation:
    pairs = make_pairs(step)
    summary = Summary(step=step, settings=SETTINGS, verification=verify(pairs, (0.1,), 20, 3), centred=CENTRED)
    names = np.array([f"p{i}/1.jpg" for i in range(12)])
    return Evaluation(summary, pairs, names[pairs.identity_a], names[pairs.identity_b])


def test_the_summary_holds_the_rates_of_its_pairs() -> None:
    pairs = make_pairs()
    found = verify(pairs, (0.2, 0.05), resamples=25, seed=9, confidence=0.8)
    curve, folds = roc(pairs), kfold_accuracy(pairs)
    assert (found.accuracy.value, found.deviation, found.auc.value) == (folds.mean, folds.deviation, auc(curve))
    assert found.folds == tuple(folds.accuracies)
    assert [(t.far, t.tar.value) for t in found.tar] == [(f, attained_tar(curve, f)) for f in (0.2, 0.05)]
    assert (found.genuine, found.impostors, found.identities) == (60, 60, 12)
    twice = np.array([people_of(pairs.select(pairs.same))])
    expected = identity_draws(pairs, lambda p: np.array([attained_tar(roc(p), 0.05)]), 25, 9, twice).rates(0.8)
    np.testing.assert_allclose((found.tar[1].tar.low, found.tar[1].tar.high), expected[0], atol=1e-12)
    threshold = found.tar[1].threshold
    assert threshold is not None
    assert np.mean(pairs.scores[pairs.same] >= threshold) == found.tar[1].tar.value
    assert np.mean(pairs.scores[~pairs.same] >= threshold) <= 0.05


def test_everybody_told_apart_is_no_certainty() -> None:
    """100% of 12 people is what a network of 80% reaches now and then."""
    pairs = make_pairs()
    found = verify(replace(pairs, scores=np.where(pairs.same, 0.9, 0.1)), (0.1,), resamples=10)
    for rate in (found.accuracy, found.auc, found.tar[0].tar):
        assert (rate.value, rate.high) == (1, 1)
        assert 0.6 < rate.low < 0.8


def test_a_far_beyond_the_impostors_is_refused() -> None:
    with pytest.raises(ValueError, match=r"far: got 0.01 with 60 different pairs"):
        verify(make_pairs(), (0.01,), 20)


def test_an_evaluation_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(6, 4))
    angles = class_angles(features, np.arange(6) // 2, ["p0", "p1", "p2"])
    saved = replace(make_evaluation(7), angles=angles)
    file = save(saved, tmp_path)
    assert file.name == "step-00000007.json"
    loaded = load(file)
    assert loaded.summary == saved.summary
    for name, array in vars(saved.pairs).items():
        np.testing.assert_array_equal(vars(loaded.pairs)[name], array)
    np.testing.assert_array_equal(loaded.path_a, saved.path_a)
    np.testing.assert_array_equal(loaded.path_b, saved.path_b)
    assert loaded.angles is not None
    for name, array in vars(angles).items():
        np.testing.assert_array_equal(vars(loaded.angles)[name], array)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".npz"]
    assert load(save(make_evaluation(8), tmp_path / "earlier")).angles is None


@pytest.mark.parametrize("suffix", [".json", ".npz"])
@pytest.mark.parametrize("left", [0, 50])
def test_a_torn_file_is_named(tmp_path: Path, suffix: str, left: int) -> None:
    file = save(make_evaluation(1), tmp_path)
    torn = file.with_suffix(suffix)
    torn.write_bytes(torn.read_bytes()[:left])
    with pytest.raises(ValueError, match=r"step-00000001.json: not a complete evaluation: .*--force") as caught:
        load(file)
    assert "\n" not in str(caught.value)
