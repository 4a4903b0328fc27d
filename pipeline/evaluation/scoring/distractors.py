"""MegaFace's two figures in one pass over the distractors: rank-k identification and TAR at FAR, with intervals.

Kemelmacher-Shlizerman et al., "The MegaFace Benchmark", CVPR 2016: each image of a person is searched, with each other
image of that person hidden in turn among the distractors. FAR counts every pair of probe and distractor.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.scoring.bootstrap import trial_draws
from pipeline.evaluation.scoring.draws import Draws
from pipeline.evaluation.scoring.identification import cmc, distractor_barrier, distractor_ranks, mate_trials
from pipeline.evaluation.scoring.rates import Rate, TarAtFar, tars_at, with_intervals
from pipeline.evaluation.scoring.search import nearest
from pipeline.evaluation.scoring.verification import FloatArray, IntArray, require_resolvable


@dataclass(frozen=True)
class Found:
    """Rates among the distractors; `cmc[r]` is the share of trials of rank at most r + 1. `draws` are of both."""

    cmc: tuple[Rate, ...]
    tar: tuple[TarAtFar, ...]
    trials: int
    draws: Draws


def identify(
    probes_ND: NDArray[Any],
    identity: IntArray,
    distractors: Iterable[NDArray[Any]],
    count: int,
    ranks: int,
    fars: tuple[float, ...],
    resamples: int,
    seed: int = 0,
    device: Any = "cpu",
) -> Found:
    """Search every probe among `count` distractors, given as blocks of rows.

    Intervals resample the probes' people; distractors, and so the thresholds, are held. Raises ValueError when probes
    times distractors cannot resolve one of `fars`, or no person has two probes.
    """
    for far in fars:
        require_resolvable(far, len(probes_ND) * count, of="pairs of probe and distractor")
    scores, probe = mate_trials(probes_ND, identity)
    highest = max((int(far * len(probes_ND) * count) + 2 for far in fars), default=0)
    neighbours = nearest(probes_ND, distractors, ranks, highest, device)
    rank_M = distractor_ranks(scores, probe, neighbours)
    barriers = [distractor_barrier(neighbours, far) for far in fars]

    def rates(weight: FloatArray) -> FloatArray:
        tars = [np.average(scores > barrier, weights=weight) for barrier in barriers]
        return np.array([*cmc(rank_M, ranks, weight), *tars])

    draws = trial_draws(identity[probe], rates, resamples, seed)
    every = with_intervals(draws.value_K, draws.rates())
    # What is accepted lies above the barrier, which is a float32 score.
    thresholds = [np.nextafter(np.float32(barrier), np.float32(np.inf)) for barrier in barriers]
    return Found(tuple(every[:ranks]), tars_at(fars, every[ranks:], thresholds), len(scores), draws)
