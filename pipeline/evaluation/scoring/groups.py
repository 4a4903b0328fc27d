"""Errors by group of people, such as a skin tone or an age, at one threshold for everybody.

Grother, Ngan, Hanaoka, "Face Recognition Vendor Test part 3: demographic effects", NISTIR 8280, 2019: one threshold is
chosen on all pairs, and each group's false match rate (FMR, of pairs of two people who are both of the group) and false
non-match rate (FNMR, of pairs of one person) are read at it. Thresholds by group would hide what they differ in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pipeline.evaluation.scoring.bootstrap import identity_draws, people_of
from pipeline.evaluation.scoring.rates import Rate, Record, TarAtFar, with_intervals
from pipeline.evaluation.scoring.verification import FloatArray, IntArray, ScoredPairs

ACROSS = "across groups"  # pairs of two people of different groups


class ErrorsAtFar(Record):
    """A group's error rates at the threshold whose FAR over all pairs is `far`; None: it has no such pairs."""

    far: float
    fmr: Rate | None
    fnmr: Rate | None


class GroupErrors(Record):
    """What a group's pairs are and how often they are judged wrongly."""

    name: str
    genuine: int
    impostors: int
    errors: tuple[ErrorsAtFar, ...]


def errors_by_group(
    pairs: ScoredPairs,
    group_a: IntArray,
    group_b: IntArray,
    names: Sequence[str],
    tars: Sequence[TarAtFar],
    resamples: int,
    seed: int = 0,
) -> tuple[GroupErrors, ...]:
    """Errors of each group of `names`, then those across groups, with intervals over people; thresholds are held.

    `group_a`, `group_b` `[P]` are positions in `names` of each pair's images; a pair with an image of no group (-1)
    takes no part. `tars` have the thresholds.
    """
    known = (group_a >= 0) & (group_b >= 0)
    # The fold carries the group, so that it stays with its pair through every draw.
    grouped = replace(pairs, fold=np.where(group_a == group_b, group_a, len(names))).select(known)
    if not len(grouped):
        return ()
    cells = _Cells(grouped, len(names) + 1, np.array([np.inf if t.threshold is None else t.threshold for t in tars]))
    rates = with_intervals(*cells.measured(grouped, resamples, seed))
    found = []
    for number, name in enumerate([*names, ACROSS]):
        errors = []
        for i, tar in enumerate(tars):
            fmr, fnmr = (rates[cells.place(i, number, same)] if cells.size(number, same) else None for same in (0, 1))
            errors.append(ErrorsAtFar(far=tar.far, fmr=fmr, fnmr=fnmr))
        group = GroupErrors(
            name=name, genuine=cells.size(number, 1), impostors=cells.size(number, 0), errors=tuple(errors)
        )
        if group.genuine + group.impostors:
            found.append(group)
    return tuple(found)


class _Cells:
    """Error rates by threshold, group and kind of pair, as one vector."""

    def __init__(self, pairs: ScoredPairs, groups: int, thresholds: FloatArray) -> None:
        self._groups, self._thresholds = groups, thresholds
        self._sizes = self._counts(pairs, np.ones(len(pairs)))
        self._measured = np.zeros(len(thresholds) * 2 * groups)
        self._measured = self.rates(pairs)

    def size(self, group: int, same: int) -> int:
        """How many pairs a cell has."""
        return int(self._sizes[2 * group + same])

    def place(self, threshold: int, group: int, same: int) -> int:
        """Where the rates have a cell's."""
        return threshold * 2 * self._groups + 2 * group + same

    def rates(self, pairs: ScoredPairs) -> FloatArray:
        """The share of wrong decisions of each cell; as measured where a draw has left no pair."""
        total = self._counts(pairs, pairs.weight)
        rates = []
        for threshold in self._thresholds:
            wrong = (pairs.scores >= threshold) != pairs.same
            rates.append(self._counts(pairs, pairs.weight * wrong))
        counted = np.concatenate(rates), np.tile(total, len(rates))
        return np.divide(*counted, out=self._measured.copy(), where=counted[1] > 0)

    def measured(self, pairs: ScoredPairs, resamples: int, seed: int) -> tuple[FloatArray, FloatArray]:
        """The rates, and their intervals."""
        units = []
        for cell in range(2 * self._groups):
            mine = pairs.select((pairs.fold == cell // 2) & (pairs.same == bool(cell % 2)))
            units.append(people_of(mine) if len(mine) else 1)
        draws = identity_draws(pairs, self.rates, resamples, seed, np.tile(units, len(self._thresholds)).astype(float))
        return draws.value_K, draws.rates()

    def _counts(self, pairs: ScoredPairs, weight: FloatArray) -> FloatArray:
        counts = np.bincount(2 * pairs.fold + pairs.same, weight, minlength=2 * self._groups)
        return counts.astype(np.float64)
