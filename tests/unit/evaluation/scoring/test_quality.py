"""Error against reject rate, by removing pairs one after another."""

import numpy as np
import pytest

from pipeline.evaluation.scoring.quality import REJECTED, reject_curve
from pipeline.evaluation.scoring.rates import Rate, TarAtFar
from pipeline.evaluation.scoring.verification import ScoredPairs


def make(count: int) -> tuple[ScoredPairs, np.ndarray]:
    generator = np.random.default_rng(count)
    same = np.arange(count) % 3 > 0
    quality = generator.random(count)
    scores = generator.normal(same * quality, 0.3)
    nobody = np.zeros(count, int)
    return ScoredPairs.of(scores, same, nobody, identity_a=nobody, identity_b=nobody), quality


def at(threshold: float | None) -> TarAtFar:
    return TarAtFar(far=0.01, tar=Rate(value=0, low=0, high=0), threshold=threshold)


@pytest.mark.parametrize("count", [20, 59, 135, 300])
def test_the_curve_equals_removing_the_worst_pairs_one_by_one(count: int) -> None:
    pairs, quality = make(count)
    found = reject_curve(pairs, quality, at(0.4))
    assert found.far == 0.01
    for share, fnmr in zip(REJECTED, found.fnmr, strict=True):
        left = [(q, s) for q, s, same in zip(quality, pairs.scores, pairs.same, strict=True) if same]
        for _ in range(round(share * 100) * len(left) // 100):
            left.remove(min(left))
        assert fnmr == sum(score < 0.4 for _, score in left) / len(left)
    assert found.fnmr[0] > found.fnmr[15]  # these qualities are worth something


def test_a_score_at_the_threshold_is_accepted() -> None:
    pairs, quality = make(30)
    assert reject_curve(pairs, quality, at(float(pairs.scores[pairs.same].min()))).fnmr[0] == 0


def test_without_a_threshold_everybody_is_rejected() -> None:
    pairs, quality = make(30)
    assert set(reject_curve(pairs, quality, at(None)).fnmr) == {1}
