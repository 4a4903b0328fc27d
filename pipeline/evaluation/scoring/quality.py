"""Error against reject rate: does a network know which images it cannot judge?

Grother, Tabassi, "Performance of biometric quality measures", IEEE PAMI 2007: pairs of the lowest quality are rejected,
and the false non-match rate of the others is read at a threshold that stays. A quality that is worth something makes it
fall. The quality here is the norm of the features, ‖x‖, which grows with an image's quality under margins that keep it,
such as A-Softmax, and by design in MagFace (Meng et al., CVPR 2021); a pair's is that of its worse image.
"""

from __future__ import annotations

import numpy as np

from pipeline.evaluation.scoring.rates import Record, TarAtFar
from pipeline.evaluation.scoring.verification import FloatArray, ScoredPairs

REJECTED = tuple(i / 20 for i in range(20))  # shares of the same pairs: 0 to 95%


class RejectCurve(Record):
    """FNMR at the threshold of a FAR, with each share of `REJECTED` of the same pairs left out."""

    far: float
    fnmr: tuple[float, ...]


def reject_curve(pairs: ScoredPairs, quality_P: FloatArray, tar: TarAtFar) -> RejectCurve:
    """FNMR of the same pairs when those of the lowest `quality_P` `[P]` are rejected, at the threshold of `tar`."""
    order = np.argsort(quality_P[pairs.same], kind="stable")
    threshold = np.inf if tar.threshold is None else tar.threshold
    wrong = (pairs.scores[pairs.same] < threshold)[order]
    fnmr = [float(np.mean(wrong[int(share * len(wrong) + 1e-9) :])) for share in REJECTED]
    return RejectCurve(far=tar.far, fnmr=tuple(fnmr))
