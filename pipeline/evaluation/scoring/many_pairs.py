"""TAR at FAR of pairs by the million: sorted once, then judged under any draw of the people in little memory.

The numbers are those of `verification.roc` and `bootstrap.identity_draws`, bit for bit: IJB-C's 15.7 million pairs
would not fit into 2 GiB with them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.scoring.bootstrap import PAIR_DRAWS, PATIENCE, draw_pairs, pair_generator
from pipeline.evaluation.scoring.draws import Draws, effective_people
from pipeline.evaluation.scoring.verification import BoolArray, FloatArray, IntArray


class ManyPairs:
    """`P` scored pairs, from the highest score to the lowest.

    Args:
        scores: `[P]`, higher means more alike.
        same: `[P]` whether both images show one person.
        people_a, people_b: `[P]` the person of each image, 0, 1, ...
    """

    def __init__(self, scores: FloatArray, same: BoolArray, people_a: NDArray[Any], people_b: NDArray[Any]) -> None:
        order = np.argsort(-scores, kind="stable").astype(np.int32)
        self._place = order  # of each, as it was given
        self._falling = -scores[order]  # ascending, so that it can be searched
        self._same = same[order]
        self._a = people_a[order].astype(np.int32)
        self._b = people_b[order].astype(np.int32)
        self.people = int(max(self._a.max(), self._b.max())) + 1

    def rates(self, fars: FloatArray, weight: NDArray[np.int32] | None = None) -> FloatArray | None:
        """TAR `[F]` at each of `fars` if pairs count `weight` `[P]` times (None: once); None without either kind."""
        if weight is None:
            weight = np.ones(len(self._same), np.int32)
        impostors = np.cumsum(np.where(self._same, 0, weight), dtype=np.int64)
        genuine = int(np.sum(weight, where=self._same, dtype=np.int64))
        if not genuine or not impostors[-1]:
            return None
        tars = []
        for far in fars:
            accepted = self._accepted(impostors, far)
            hits = int(np.sum(weight[:accepted], where=self._same[:accepted], dtype=np.int64))
            tars.append(hits / genuine)
        return np.array(tars)

    def thresholds(self, fars: FloatArray) -> FloatArray:
        """The lowest score `[F]` that is accepted at each of `fars`, infinite if none is."""
        impostors = np.cumsum(~self._same, dtype=np.int64)
        accepted = [self._accepted(impostors, far) for far in fars]
        return np.array([-self._falling[count - 1] if count else np.inf for count in accepted])

    def weights(self, drawn: IntArray) -> NDArray[np.int32]:
        """How often each pair counts if person i was drawn `drawn[i]` times, as `bootstrap.pair_weights`."""
        counts = drawn.astype(np.int32)
        weight = counts[self._a]
        other = counts[self._b]
        np.copyto(other, 1, where=self._a == self._b)  # one person's count stands for itself, not for its square
        weight *= other
        return weight

    def pairs_drawn(self, generator: np.random.Generator) -> NDArray[np.int32]:
        """How often each pair counts in a draw of the pairs of two people, one by one, the same whatever the scores."""
        given = np.empty(len(self._place), bool)
        given[self._place] = self._a != self._b
        weight = np.ones(len(given), np.int32)
        weight[given] = draw_pairs(int(given.sum()), generator)
        return weight[self._place]

    def effective_people_twice(self) -> float:
        """The independent people of the pairs that show one person."""
        return effective_people(np.concatenate([self._a[self._same], self._b[self._same]]))

    def _accepted(self, impostors: IntArray, far: float) -> int:
        """How many pairs the lowest threshold accepts whose FAR does not exceed `far`: equal scores stay together."""
        total = int(impostors[-1])
        allowed = int(far * total)
        while allowed < total and (allowed + 1) / total <= far:  # the product may fall a rounding short
            allowed += 1
        while allowed and allowed / total > far:
            allowed -= 1
        cut = int(np.searchsorted(impostors, allowed, side="right"))
        if 0 < cut < len(impostors) and self._falling[cut] == self._falling[cut - 1]:
            cut = int(np.searchsorted(self._falling, self._falling[cut - 1], side="left"))
        return cut


def tar_draws(pairs: ManyPairs, fars: FloatArray, resamples: int, seed: int = 0) -> Draws:
    """TAR `[F]` at each of `fars` as measured and under draws.

    Raises ValueError when there are pairs of one kind only, or hardly any draw holds both.
    """
    value = pairs.rates(fars)
    if value is None:
        raise ValueError("pairs: got pairs of one kind, wanted same and different ones")
    people = _of_people(pairs, fars, resamples, seed)
    generator = pair_generator(seed)
    one_by_one = []
    for _ in range(min(resamples, PAIR_DRAWS)):
        found = pairs.rates(fars, pairs.pairs_drawn(generator))
        assert found is not None, "as many pairs of each kind are drawn as there are"
        one_by_one.append(found)
    units = np.full(len(fars), pairs.effective_people_twice())
    return Draws(value, people, np.stack(one_by_one), units)


def _of_people(pairs: ManyPairs, fars: FloatArray, resamples: int, seed: int) -> FloatArray:
    generator = np.random.default_rng(seed)
    values: list[FloatArray] = []
    for _ in range(PATIENCE * resamples):
        people = generator.integers(pairs.people, size=pairs.people)
        found = pairs.rates(fars, pairs.weights(np.bincount(people, minlength=pairs.people)))
        if found is not None:
            values.append(found)
        if len(values) == resamples:
            return np.stack(values)
    raise ValueError(
        f"bootstrap: {len(values)} of {PATIENCE * resamples} draws of {pairs.people} people hold pairs of both kinds,"
        f" wanted {resamples}: the set is too small for an interval"
    )
