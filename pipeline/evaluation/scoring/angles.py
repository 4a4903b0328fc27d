"""Angles between features, in degrees: of images to the mean of their own person, and between people.

SphereFace's argument (Liu et al., CVPR 2017, section 3.3) is about these: the largest angle within a person ought to be
smaller than the smallest between people.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.scoring.verification import FloatArray, IntArray

QUANTILES = (0.05, 0.5, 0.95)
BINS = 180  # of one degree
_BLOCK = 1024  # people whose angles to all others are held at a time


@dataclass(frozen=True)
class ClassAngles:
    """Angles of `C` people, in degrees.

    An image's angle is to the mean direction of the person's *other* images: its own would pull the mean to it, the
    more so the fewer there are. A person with one image has none.

    Attributes:
        names: of the people.
        images: `[C]` how many each has.
        within: `[C, 3]` `QUANTILES` of the angles of their images; NaN for one image.
        nearest: `[C]` angle from a person's mean to the nearest other person's; NaN for one person alone.
        neighbour: `[C]` the nearest other person, a position in `names`.
        within_counts, between_counts: `[180]` how many angles of images, and between the means of two people, fall into
            each degree.
    """

    names: NDArray[np.str_]
    images: IntArray
    within: FloatArray
    nearest: FloatArray
    neighbour: IntArray
    within_counts: IntArray
    between_counts: IntArray

    @property
    def mean_cosine(self) -> float:
        """Between the means of two people, over all couples, to 0.01: 0 if people are spread over all directions, 1 if
        they are one; NaN for one person alone."""
        centres = np.cos(np.radians(np.arange(BINS) + 0.5))
        return float(self.between_counts @ centres / couples) if (couples := self.between_counts.sum()) else np.nan

    def worst(self, count: int) -> IntArray:
        """The people with the least room between their median image and the nearest other person, worst first."""
        room = self.nearest - self.within[:, 1]
        known = np.flatnonzero(np.isfinite(room))
        return known[np.argsort(room[known], kind="stable")][:count]


def class_angles(features_ND: NDArray[Any], identity: IntArray, people: Sequence[str]) -> ClassAngles:
    """The angles of `N` images' features, given the person of each, a position in the names `people`.

    A row of zeros, as a collapsed network gives it, is at 90° to everything.
    """
    unit_ND = _unit(np.asarray(features_ND, np.float64))
    known, person = np.unique(identity, return_inverse=True)
    count = len(known)
    sums_CD = np.zeros((count, unit_ND.shape[1]))
    np.add.at(sums_CD, person, unit_ND)
    images = np.bincount(person, minlength=count)
    angle_N = _degrees(np.sum(unit_ND * _unit(sums_CD[person] - unit_ND), axis=1))
    angle_N[images[person] < 2] = np.nan
    nearest, neighbour, between = _between(_unit(sums_CD).astype(np.float32))
    order = np.argsort(person, kind="stable")
    groups = np.split(angle_N[order], np.cumsum(images)[:-1])
    return ClassAngles(
        names=np.array([people[i] for i in known]),
        images=images,
        within=np.array([np.quantile(group, QUANTILES) for group in groups]),
        nearest=nearest,
        neighbour=neighbour,
        within_counts=_counts(angle_N[np.isfinite(angle_N)]),
        between_counts=between,
    )


def _between(centres_CD: NDArray[np.float32]) -> tuple[FloatArray, IntArray, IntArray]:
    """Of each mean the angle to its nearest other `[C]` and which that is, and all pairs' angles counted by degree."""
    count = len(centres_CD)
    nearest, neighbour = np.full(count, np.nan), np.zeros(count, np.int64)
    twice = np.zeros(BINS, np.int64)
    for start in range(0, count if count > 1 else 0, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, count))
        angles = _degrees(centres_CD[rows] @ centres_CD.T)
        angles[np.arange(len(rows)), rows] = np.inf
        neighbour[rows] = np.argmin(angles, axis=1)
        nearest[rows] = np.min(angles, axis=1)
        twice += _counts(angles[np.isfinite(angles)])
    return nearest, neighbour, twice // 2


def _counts(angles: NDArray[Any]) -> IntArray:
    return np.asarray(np.histogram(angles, BINS, (0, 180))[0], np.int64)


def _degrees(cosine: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def _unit(rows: NDArray[Any]) -> NDArray[Any]:
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.where(norms > 0, norms, 1))
