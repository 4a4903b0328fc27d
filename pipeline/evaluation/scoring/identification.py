"""One-to-many identification: ranks, CMC, TPIR at FPIR, and millions of distractors.

A tie counts against the mate: its rank is one more than the rivals that score at least as high.

Sources: Grother, Ngan, Hanaoka, FRVT part 2 (NISTIR 8271) for CMC and for TPIR at FPIR; Maze et al., "IARPA Janus
Benchmark C", ICB 2018; Kemelmacher-Shlizerman et al., "The MegaFace Benchmark", CVPR 2016 for distractors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.scoring.search import Neighbours
from pipeline.evaluation.scoring.verification import BoolArray, FloatArray, IntArray, require_resolvable

UNRANKED = np.iinfo(np.int64).max  # no mate among the neighbours that were kept


def mate_ranks(found: Neighbours, probe_identity: IntArray, gallery_identity: IntArray) -> IntArray:
    """Rank `[P]` of each probe's best mate: 1 when no row of another identity scores as high.

    Rows of the probe's own identity do not compete with each other. `UNRANKED` if no mate is among the kept
    neighbours, because the gallery holds none or because K others are closer, and if the best one scores as the last
    that was kept: any number of rows that were not may tie with it. So ranks up to K - 1 are known.
    """
    best_P = mate_scores(found, probe_identity, gallery_identity)
    rivals_PK = gallery_identity[found.index_PK] != probe_identity[:, None]
    ahead_P = np.sum(rivals_PK & (found.scores_PK >= best_P[:, None]), axis=1)
    whole = found.scores_PK.shape[1] == len(gallery_identity)
    known_P = best_P > (-np.inf if whole else found.scores_PK[:, -1])
    return np.where(known_P, ahead_P + 1, UNRANKED).astype(np.int64)


def mate_scores(found: Neighbours, probe_identity: IntArray, gallery_identity: IntArray) -> NDArray[np.float32]:
    """Score `[P]` of each probe's best mate; minus infinity if no mate is among the kept neighbours."""
    mates_PK = gallery_identity[found.index_PK] == probe_identity[:, None]
    return np.where(mates_PK, found.scores_PK, np.float32(-np.inf)).max(axis=1)


def cmc(ranks: IntArray, up_to: int, weight: FloatArray | None = None) -> FloatArray:
    """Cumulative match characteristic `[up_to]`: the share of searches whose mate has rank 1, at most 2, ..."""
    return np.array([np.average(ranks <= rank, weights=weight) for rank in range(1, up_to + 1)])


def false_alarm_barrier(found: Neighbours, mated: BoolArray, fpir: float) -> float:
    """The score that a search must exceed to return anyone, for open-set identification at a false positive rate.

    FPIR is the share of searches for people outside the gallery (`mated` `[P]` is false) that return anyone. TPIR is
    then the share of mated searches whose mate has rank 1 and a score above.

    Raises ValueError when there are no mated searches, or too few others to resolve `fpir`.
    """
    if not mated.any():
        raise ValueError("identification: got no probe whose identity is in the gallery, wanted some")
    false_alarms = found.scores_PK[~mated, 0]
    require_resolvable(fpir, len(false_alarms), "fpir", "searches for people outside the gallery")
    return highest_rejected(false_alarms, fpir, len(false_alarms))


def mate_trials(features_ND: NDArray[Any], identity: IntArray) -> tuple[FloatArray, IntArray]:
    """Every ordered pair of two images of one person: its cosine `[M]`, 0 for zeros, and the row of the probe `[M]`.

    Raises ValueError when no person has two images.
    """
    norms = np.linalg.norm(features_ND, axis=1, keepdims=True)
    unit = features_ND / np.where(norms > 0, norms, 1)
    scores, probes = [], []
    for person in np.unique(identity):
        rows = np.flatnonzero(identity == person)
        others = ~np.eye(len(rows), dtype=bool)
        scores.append((unit[rows] @ unit[rows].T)[others])
        probes.append(np.repeat(rows, len(rows) - 1))
    if not sum(map(len, probes)):
        raise ValueError(f"probes: got {len(identity)} images, no two of one person, wanted some to find again")
    return np.concatenate(scores).astype(np.float64), np.concatenate(probes)


def distractor_ranks(mate_scores: NDArray[Any], probe: IntArray, distractors: Neighbours) -> IntArray:
    """Rank `[M]` of each mate alone among all distractors, as MegaFace counts it.

    Each of `M` trials hides one mate, whose score against the probe is given, among the distractors that were searched
    for probe `probe[i]`. A rank above the K kept neighbours is `UNRANKED`.
    """
    rivals = np.sum(distractors.scores_PK[probe] >= mate_scores[:, None], axis=1)
    complete = rivals < distractors.scores_PK.shape[1]
    return np.where(complete, rivals + 1, UNRANKED).astype(np.int64)


def distractor_barrier(distractors: Neighbours, far: float) -> float:
    """The score that a mate must exceed for the FAR over every probe and distractor to stay within `far`.

    Raises ValueError when probes times distractors cannot resolve `far`, or when the search kept too few of the
    highest scores to find its threshold (`highest` of at least ``far × compared + 1``).
    """
    require_resolvable(far, distractors.compared, of="pairs of probe and distractor")
    needed = min(int(far * distractors.compared + 1e-9) + 1, distractors.compared)
    if len(distractors.highest) < needed:
        raise ValueError(
            f"distractors: got the {len(distractors.highest)} highest scores, wanted {needed} for a FAR of {far:g}"
        )
    return highest_rejected(distractors.highest, far, distractors.compared)


def highest_rejected(impostors: NDArray[Any], rate: float, attempts: int) -> float:
    """The impostor score that must be rejected for the accepted share to stay within `rate`; accept what is above.

    `impostors` are the highest scores of `attempts` impostor attempts. Minus infinity when all may be accepted.
    """
    allowed = int(rate * attempts + 1e-9)  # 1/49 × 49 falls a rounding short of 1
    if allowed >= attempts:
        return -np.inf
    return float(np.sort(impostors)[::-1][allowed])
