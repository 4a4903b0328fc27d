"""Templates of several images: fused, verified 1:1 and searched 1:N, as IJB-B and IJB-C do.

Whitelam et al., "IARPA Janus Benchmark-B", CVPRW 2017; Maze et al., "IARPA Janus Benchmark C", ICB 2018.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.scoring.draws import Draws
from pipeline.evaluation.scoring.gallery import search_draws
from pipeline.evaluation.scoring.many_pairs import ManyPairs, tar_draws
from pipeline.evaluation.scoring.rates import TarAtFar, tars_at, with_intervals
from pipeline.evaluation.scoring.search import blocks_of, nearest
from pipeline.evaluation.scoring.verification import BoolArray, FloatArray, IntArray, cosine_scores, require_resolvable

RANKS = (1, 5, 10)
CURVE_POINTS = 25
IMAGES_AT_ONCE = 8192  # whose features are fused together


@dataclass(frozen=True)
class Templates:
    """`T` templates with their features `[T, D]`; `ids` rise."""

    ids: IntArray
    features_TD: FloatArray

    def known(self, ids: IntArray) -> BoolArray:
        """Which of some templates, by id, are here."""
        return np.asarray(self.ids[self._places(ids)] == ids)

    def rows(self, ids: IntArray) -> IntArray:
        """The rows of templates by id; raises ValueError naming the first id that has no images."""
        places = self._places(ids)
        absent = np.flatnonzero(self.ids[places] != ids)
        if len(absent):
            raise ValueError(f"template {ids[absent[0]]}: got no images (and {len(absent) - 1} more), wanted some")
        return places

    def _places(self, ids: IntArray) -> IntArray:
        return np.searchsorted(self.ids, ids).clip(max=len(self.ids) - 1)


def fuse(rows: Callable[[IntArray], NDArray[Any]], template: IntArray, medium: IntArray) -> Templates:
    """Templates from `M` images, given the template and the medium of each.

    `rows` gives the features `[n, D]` of the images at some positions. It is asked for a few templates at a time, so
    memory is that of the templates, whatever the number of images.

    A template's feature is the sum over its media of the mean feature of each medium's images, so that a long video
    weighs as much as one photograph. What the feature of an image is, `Fusion` says.
    """
    order = np.lexsort((medium, template))
    ids, first, count = np.unique(template[order], return_index=True, return_counts=True)
    stops = first + count
    fused = []
    begin = 0
    while begin < len(ids):
        end = max(begin + 1, int(np.searchsorted(stops, first[begin] + IMAGES_AT_ONCE, side="right")))
        some = order[first[begin] : stops[end - 1]]
        fused.append(_fused(rows(some), template[some], medium[some]))
        begin = end
    return Templates(ids, np.concatenate(fused))


def _fused(features_MD: NDArray[Any], template: IntArray, medium: IntArray) -> FloatArray:
    """The features of whole templates, whose images are sorted by template and medium."""
    starts = np.flatnonzero(np.r_[True, (template[1:] != template[:-1]) | (medium[1:] != medium[:-1])])
    counts = np.diff(np.r_[starts, len(template)])
    means = np.add.reduceat(features_MD.astype(np.float64), starts, axis=0) / counts[:, None]
    first = np.unique(template[starts], return_index=True)[1]
    return np.asarray(np.add.reduceat(means, first, axis=0))


@dataclass(frozen=True)
class OneToOne:
    """1:1 verification of templates: TAR at each FAR with intervals over subjects, and `curve`, points (FAR, TAR)."""

    tar: tuple[TarAtFar, ...]
    curve: tuple[tuple[float, float], ...]
    draws: Draws


def verify_templates(
    templates: Templates,
    pairs: tuple[IntArray, IntArray, BoolArray],
    subject_of: dict[int, int],
    fars: tuple[float, ...],
    resamples: int,
    seed: int = 0,
) -> OneToOne:
    """Verify pairs of templates; a template without a known subject is one of its own.

    Memory is that of the templates and about 60 bytes a pair. Raises ValueError when the different pairs cannot resolve
    one of `fars`.
    """
    row_a, row_b, same = templates.rows(pairs[0]), templates.rows(pairs[1]), pairs[2]
    impostors = int(np.sum(~same))
    for far in fars:
        require_resolvable(far, impostors)
    # Ids of subjects and of templates must not meet: unknown subjects take negative numbers.
    label = [subject_of.get(int(template), -1 - int(template)) for template in templates.ids]
    people = np.unique(label, return_inverse=True)[1].astype(np.int32)
    scores = cosine_scores(templates.features_TD, row_a, row_b)
    scored = ManyPairs(scores, same, people[row_a], people[row_b])
    del scores, row_a, row_b
    grid = np.array([*fars, *np.geomspace(1 / impostors, 1, CURVE_POINTS)])
    values = scored.rates(grid)
    if values is None:
        raise ValueError(f"templates: got {np.sum(same)} same and {impostors} different pairs, wanted some of each")
    draws = tar_draws(scored, np.array(fars), resamples, seed)
    tars = with_intervals(values[: len(fars)], draws.rates())
    curve = zip(grid[len(fars) :].tolist(), values[len(fars) :].tolist(), strict=True)
    return OneToOne(tars_at(fars, tars, scored.thresholds(np.array(fars))), tuple(curve), draws)


def search_templates(
    templates: Templates,
    galleries: Mapping[str, tuple[IntArray, IntArray]],
    probes: tuple[IntArray, IntArray],
    fpirs: tuple[float, ...],
    resamples: int,
    seed: int = 0,
) -> dict[str, Draws]:
    """1:N in each gallery: the rates of `RANKS` over mated probes, then TPIR at each FPIR over all, by gallery.

    Of several galleries their mean comes last, as both protocols report it. Galleries and `probes` are template ids
    with their subjects; intervals are over subjects. Raises ValueError as `search_draws` does.
    """
    rows = templates.features_TD[templates.rows(probes[0])]
    draws = {}
    for number, (name, (ids, subject)) in enumerate(galleries.items()):
        found = nearest(rows, blocks_of(templates.features_TD[templates.rows(ids)]), max(RANKS) + 1)
        # Galleries share no subject, so their draws are independent.
        draws[name] = search_draws(found, probes[1], subject, RANKS, fpirs, resamples, seed + number)
    if len(draws) > 1:
        draws[f"mean of {' and '.join(draws)}"] = Draws.mean(list(draws.values()))
    return draws
