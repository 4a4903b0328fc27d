"""A 1:N search of a gallery, closed and open set, with draws of the people who are searched for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.scoring.bootstrap import trial_draws
from pipeline.evaluation.scoring.draws import Draws
from pipeline.evaluation.scoring.identification import cmc, false_alarm_barrier, mate_ranks, mate_scores
from pipeline.evaluation.scoring.rates import Rate, TpirAtFpir, with_intervals
from pipeline.evaluation.scoring.search import Neighbours, nearest
from pipeline.evaluation.scoring.verification import FloatArray, IntArray

NOBODY = -1  # the identity of a distractor: nobody's who is searched for


def search_gallery(
    probes_PD: NDArray[Any],
    probe_identity: IntArray,
    gallery: Iterable[NDArray[Any]],
    gallery_identity: IntArray,
    ranks: int,
    fpirs: Sequence[float],
    resamples: int,
    seed: int = 0,
    device: Any = "cpu",
) -> Draws:
    """Search a gallery, given as blocks of rows, for each probe: the CMC up to `ranks`, then TPIR at each of `fpirs`.

    `gallery_identity` is of every row; distractors are `NOBODY`. Raises ValueError as `search_draws` does.
    """
    found = nearest(probes_PD, gallery, ranks + 1, device=device)
    return search_draws(found, probe_identity, gallery_identity, range(1, ranks + 1), fpirs, resamples, seed)


def search_draws(
    found: Neighbours,
    probe_identity: IntArray,
    gallery_identity: IntArray,
    ranks: Sequence[int],
    fpirs: Sequence[float],
    resamples: int,
    seed: int = 0,
) -> Draws:
    """The share of mated probes within each of `ranks`, then TPIR at each of `fpirs`: `R + F` statistics.

    `found` has one neighbour more than the last of `ranks`, or the whole gallery (see `mate_ranks`). Thresholds are
    held while the people of the mated probes are drawn. Raises ValueError if there is no mated probe, or the others
    cannot resolve one of `fpirs`.
    """
    mated = np.isin(probe_identity, gallery_identity)
    if not mated.any():
        raise ValueError("identification: got no probe whose identity is in the gallery, wanted some")
    barriers = [false_alarm_barrier(found, mated, fpir) for fpir in fpirs]
    rank = mate_ranks(found, probe_identity, gallery_identity)[mated]
    score = mate_scores(found, probe_identity, gallery_identity)[mated]

    def rates(weight: FloatArray) -> FloatArray:
        closed = cmc(rank, max(ranks), weight)[np.array(ranks) - 1]
        hits = [np.average((rank == 1) & (score > barrier), weights=weight) for barrier in barriers]
        return np.array([*closed, *hits])

    return trial_draws(probe_identity[mated], rates, resamples, seed)


def search_rates(draws: Draws, fpirs: Sequence[float]) -> tuple[tuple[Rate, ...], tuple[TpirAtFpir, ...]]:
    """The rates of `search_draws`, each with its interval."""
    every = with_intervals(draws.value_K, draws.rates())
    closed, opened = every[: len(every) - len(fpirs)], every[len(every) - len(fpirs) :]
    tpirs = [TpirAtFpir(fpir=fpir, tpir=rate) for fpir, rate in zip(fpirs, opened, strict=True)]
    return tuple(closed), tuple(tpirs)
