"""How the feature of an image enters its template, by the letters that InsightFace gives the rules: N1D1F2, say."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.scoring.verification import FloatArray

LETTERS = re.compile(r"N([01])D([01])F([012])")


@dataclass(frozen=True)
class Fusion:
    """A rule (InsightFace, ``recognition/_evaluation_/ijb/ijb_11.py``).

    Attributes:
        norm: N1: a feature keeps its norm, the weight that the network gives an image; N0: it has length 1.
        detector: D1: a feature is weighted by the detector's score; D0: it is not.
        mirror: F0: of the image alone; F1: image and mirror, concatenated; F2: their sum.
    """

    norm: bool = True
    detector: bool = False
    mirror: int = 1

    @classmethod
    def of(cls, letters: str) -> Fusion:
        """The rule of these letters; raises ValueError if there is none."""
        found = LETTERS.fullmatch(letters)
        if found is None:
            raise ValueError(f"fusion: got {letters!r}, wanted letters such as N1D1F2")
        norm, detector, mirror = map(int, found.groups())
        return cls(bool(norm), bool(detector), mirror)

    def __str__(self) -> str:
        return f"N{int(self.norm)}D{int(self.detector)}F{self.mirror}"

    def features(self, rows_MD: NDArray[Any], score_M: FloatArray) -> FloatArray:
        """The features of `M` images, in float64.

        Args:
            rows_MD: of image and mirror, concatenated; with F1 any others too.
            score_M: the detector's; not looked at with D0.
        """
        found = np.asarray(rows_MD, np.float64)
        if self.mirror != 1:
            image, mirror = np.split(found, 2, axis=1)
            found = image + mirror if self.mirror == 2 else image
        if not self.norm:
            norms = np.linalg.norm(found, axis=1, keepdims=True)
            found = found / np.where(norms > 0, norms, 1)
        return found * score_M[:, None] if self.detector else found
