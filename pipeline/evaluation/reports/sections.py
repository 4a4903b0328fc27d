"""What a report shows of one comparison: its table, its plots, its worst errors, and a sentence that leads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from pipeline.evaluation.reports import plots
from pipeline.evaluation.reports.hardest import hardest_tiles
from pipeline.evaluation.reports.tables import (
    difference_rows,
    drawn_rows,
    far_threshold_rows,
    gallery_of,
    gallery_rows,
    group_rows,
    rate_row,
    result_rows,
    tar_rows,
    threshold_rows,
    tpir_rows,
)
from pipeline.evaluation.results import Evaluation, Identification, TemplateResult
from pipeline.evaluation.scoring.angles import ClassAngles
from pipeline.evaluation.scoring.bootstrap import roc_band
from pipeline.evaluation.scoring.quality import REJECTED
from pipeline.evaluation.scoring.rates import Rate
from pipeline.evaluation.scoring.verification import FloatArray, roc
from pipeline.run.metrics_log import mean_seconds, series

CURVES = (
    ("loss", "loss", False),
    ("margin_lambda", "λ", True),
    ("learning_rate", "learning rate", False),
    ("global_samples_per_second", "throughput, images/s", False),
)
WORST = 8  # people named with their angles
BAND_POINTS = 25  # FARs at which a ROC's interval is computed


def training_section(logs: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """Plots of the training logs; a quantity that was not logged has none."""
    drawn = []
    for key, title, log in CURVES:
        lines = {}
        for name, records in logs.items():
            steps, values = series(records, key)
            if len(steps):
                lines[name] = (steps, values)
        if lines:
            drawn.append(plots.line_plot(lines, title, log))
    if len(logs) == 1:
        seconds = mean_seconds(*logs.values())
        return [*drawn, plots.time_split_plot(seconds)] if seconds else drawn
    return drawn


def evaluation_section(
    name: str, models: Mapping[str, Evaluation], steps: Mapping[str, Sequence[Evaluation]]
) -> dict[str, Any]:
    """What the template shows of one evaluation set, models side by side; the last one is the one that counts.

    `steps` are all evaluated checkpoints by run, drawn if one has more than its first and last.
    """
    every = list(models.values())
    last = every[-1]
    rows = result_rows(every)
    if len(steps) > 1:
        rows += difference_rows(models)
    return {
        "name": name,
        "models": tuple(models),
        "result": last.summary.verification,
        "left_out": last.summary.left_out,
        "reached": [(label, model.summary.verification.accuracy) for label, model in models.items()],
        "rows": rows,
        "thresholds": threshold_rows(every),
        "groups": group_rows(every),
        "plots": [
            *verification_plots(models),
            *reject_plots(models),
            *angle_plots(last.angles),
            *progress_plots(steps),
        ],
        "worst": worst_people(last.angles),
        "missed": hardest_tiles(every, same=True),
        "fooled": hardest_tiles(every, same=False),
    }


def verification_plots(models: Mapping[str, Evaluation]) -> list[str]:
    """ROC and DET, each model's similarities, and the accuracies on the folds."""
    curves = {label: roc(model.pairs) for label, model in models.items()}
    most = max(curve.impostors for curve in curves.values())
    grid = np.geomspace(1 / most, 1, BAND_POINTS)
    limits = _score_limits(models.values())
    bands = {}
    folds = {}
    histograms = []
    for label, model in models.items():
        result = model.summary.verification
        bands[label] = roc_band(model.pairs, grid)
        folds[label] = result.folds
        histograms.append(plots.histogram_plot(model.pairs, float(np.nanmean(result.thresholds)), label, limits))
    return [
        plots.roc_plot(curves, grid, bands),
        plots.det_plot(curves, grid, bands),
        *histograms,
        plots.fold_plot(folds),
    ]


def reject_plots(models: Mapping[str, Evaluation]) -> list[str]:
    """Error against reject rate at each model's lowest FAR; none if no model has one."""
    curves = {}
    for label, model in models.items():
        if model.summary.rejects:
            lowest = min(model.summary.rejects, key=lambda curve: curve.far)
            curves[f"{label}, FAR {lowest.far:g}"] = lowest.fnmr
    return [plots.reject_plot(REJECTED, curves)] if curves else []


def angle_plots(angles: ClassAngles | None) -> list[str]:
    """Plots of the last model's angles; none if no two images show the same person."""
    if angles is None or not angles.within_counts.any():
        return []
    return [plots.angle_plot(angles), plots.people_plot(angles)]


def progress_plots(steps: Mapping[str, Sequence[Evaluation]]) -> list[str]:
    """The accuracy while training, by run; none if no run has more than its first and last step."""
    if max(map(len, steps.values()), default=0) <= 2:
        return []
    lines = {}
    for run, results in steps.items():
        accuracies = [result.summary.verification.accuracy for result in results]
        lines[run] = np.array([result.step for result in results], np.float64), _with_bounds(accuracies)
    return [plots.progress_plot(lines)]


def worst_people(angles: ClassAngles | None) -> list[tuple[str, ...]]:
    """The `WORST` separated people: name, images, median angle, 95%, nearest person, angle to them."""
    if angles is None:
        return []
    people: list[tuple[str, ...]] = []
    for i in angles.worst(WORST):
        _, median, high = angles.within[i]
        name, nearest = angles.names[i], angles.names[angles.neighbour[i]]
        own = (str(name), f"{angles.images[i]:,}", f"{median:.0f}°", f"{high:.0f}°")
        people.append((*own, str(nearest), f"{angles.nearest[i]:.0f}°"))
    return people


def identification_section(name: str, models: Mapping[str, Identification]) -> dict[str, Any]:
    """What the template shows of a search among distractors, or of a gallery, models side by side."""
    tars = [result.tar for result in models.values()]
    cmcs = [result.cmc for result in models.values()]
    by_rank = list(zip_longest(*cmcs))  # None for a model whose search was not as deep
    rows = [rate_row(f"rank {depth}", by_rank[depth - 1]) for depth in sorted({1, *map(len, cmcs)})]
    return {
        "name": name,
        "models": tuple(models),
        "result": list(models.values())[-1],
        "reached": [(label, result.cmc[0]) for label, result in models.items()],
        "rows": rows + tar_rows(tars) + tpir_rows([result.tpir for result in models.values()]) + drawn_rows(models),
        "thresholds": far_threshold_rows(tars),
        "plots": [plots.cmc_plot({label: _with_bounds(result.cmc) for label, result in models.items()})],
    }


def template_section(name: str, models: Mapping[str, TemplateResult]) -> dict[str, Any]:
    """What the template shows of IJB: 1:1 and each gallery, models side by side."""
    every = list(models.values())
    rows = tar_rows([result.tar for result in every])
    for gallery in every[-1].galleries:
        rows += gallery_rows(gallery, [gallery_of(result, gallery.name) for result in every])
    rows += drawn_rows(models)
    curves = {label: np.array(result.curve).T for label, result in models.items() if result.curve}
    return {
        "name": name,
        "models": tuple(models),
        "result": every[-1],
        "reached": [(label, result.tar[0]) for label, result in models.items() if result.tar],
        "rows": rows,
        "thresholds": far_threshold_rows([result.tar for result in every]),
        "plots": [plots.template_roc_plot(curves)] if curves else [],
    }


def _with_bounds(rates: Sequence[Rate]) -> FloatArray:
    """`[n, 3]`: each rate's value, and its interval's low and high."""
    return np.array([(rate.value, rate.low, rate.high) for rate in rates])


def _score_limits(models: Iterable[Evaluation]) -> tuple[float, float]:
    """One axis for every histogram, so that models can be compared by eye."""
    low = min(float(model.pairs.scores.min()) for model in models)
    return max(-1.0, low - 0.05), 1.0
