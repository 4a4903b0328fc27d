"""What a report shows of one comparison: its table, its plots, its worst errors, and a sentence that leads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.evaluation.reports import plots
from pipeline.evaluation.reports.hardest import hardest_tiles
from pipeline.evaluation.results import Evaluation, Identification, TemplateResult
from pipeline.evaluation.scoring.angles import ClassAngles
from pipeline.evaluation.scoring.bootstrap import roc_band
from pipeline.evaluation.scoring.estimates import Estimate, paired_differences
from pipeline.evaluation.scoring.rates import Rate, TarAtFar
from pipeline.evaluation.scoring.templates import RANKS
from pipeline.evaluation.scoring.verification import FloatArray, equal_error_rate, roc
from pipeline.run.metrics_log import mean_seconds, series

CURVES = (
    ("loss", "loss", False),
    ("margin_lambda", "λ", True),
    ("learning_rate", "learning rate", False),
    ("global_samples_per_second", "throughput, images/s", False),
)
WORST = 8  # people named with their angles
BAND_POINTS = 25  # FARs at which a ROC's interval is computed
DRAWS = 200  # of the people, for a difference
NONE = "–"


@dataclass(frozen=True)
class Cell:
    """A value of a table, and whether it is the best of its row."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Row:
    """One line of a results table: a quantity, and what each model reaches."""

    name: str
    values: tuple[Cell, ...]


def training_section(logs: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """Plots of the training logs; a quantity that was not logged has none."""
    drawn = []
    for key, title, log in CURVES:
        lines = {name: series(records, key) for name, records in logs.items()}
        lines = {name: line for name, line in lines.items() if len(line[0])}
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
    limits = _score_limits(every)
    histograms = [
        plots.histogram_plot(e.pairs, float(np.nanmean(e.summary.verification.thresholds)), label, limits)
        for label, e in models.items()
    ]
    curves = {label: roc(e.pairs) for label, e in models.items()}
    grid = np.geomspace(min(1 / curve.impostors for curve in curves.values()), 1, BAND_POINTS)
    bands = {label: roc_band(e.pairs, grid) for label, e in models.items()}
    progress = {run: _progress(results) for run, results in steps.items()}
    return {
        "name": name,
        "models": tuple(models),
        "result": every[-1].summary.verification,
        "left_out": every[-1].summary.left_out,
        "reached": [(label, e.summary.verification.accuracy) for label, e in models.items()],
        "rows": [*result_rows(every), *(difference_rows(models) if len(steps) > 1 else [])],
        "plots": [
            plots.roc_plot(curves, grid, bands),
            plots.det_plot(curves, grid, bands),
            *histograms,
            plots.fold_plot({label: e.summary.verification.folds for label, e in models.items()}),
            *angle_plots(every[-1].angles),
            *([plots.progress_plot(progress)] if any(len(line[0]) > 2 for line in progress.values()) else []),
        ],
        "worst": worst_people(every[-1].angles),
        "missed": hardest_tiles(every, same=True),
        "fooled": hardest_tiles(every, same=False),
    }


def angle_plots(angles: ClassAngles | None) -> list[str]:
    """Plots of the last model's angles; none if no two images show the same person."""
    if angles is None or not angles.within_counts.any():
        return []
    return [plots.angle_plot(angles), plots.people_plot(angles)]


def worst_people(angles: ClassAngles | None) -> list[tuple[str, ...]]:
    """The `WORST` separated people: name, images, median angle, 95%, nearest person, angle to them."""
    if angles is None:
        return []
    return [
        (
            str(angles.names[i]),
            f"{angles.images[i]:,}",
            *(f"{angle:.0f}°" for angle in angles.within[i, 1:]),
            str(angles.names[angles.neighbour[i]]),
            f"{angles.nearest[i]:.0f}°",
        )
        for i in angles.worst(WORST)
    ]


def identification_section(name: str, models: Mapping[str, Identification]) -> dict[str, Any]:
    """What the template shows of a search among distractors, models side by side."""
    every = list(models.values())
    depths = sorted({1, *(len(result.cmc) for result in every)})
    rows = [
        rate_row(f"rank {depth}", [r.cmc[depth - 1] if depth <= len(r.cmc) else None for r in every])
        for depth in depths
    ]
    curves = {
        label: np.array([(rate.value, rate.low, rate.high) for rate in result.cmc]) for label, result in models.items()
    }
    return {
        "name": name,
        "models": tuple(models),
        "result": every[-1],
        "reached": [(label, result.cmc[0]) for label, result in models.items()],
        "rows": [*rows, *tar_rows([result.tar for result in every])],
        "plots": [plots.cmc_plot(curves)],
    }


def template_section(name: str, models: Mapping[str, TemplateResult]) -> dict[str, Any]:
    """What the template shows of IJB: 1:1 and each gallery, models side by side."""
    every = list(models.values())
    rows = tar_rows([result.tar for result in every])
    for gallery in every[-1].galleries:
        found = [next((g for g in result.galleries if g.name == gallery.name), None) for result in every]
        for i, rank in enumerate(RANKS):
            rows.append(rate_row(f"{gallery.name}, rank {rank}", [None if g is None else g.ranks[i] for g in found]))
        for entry in gallery.tpir:
            rates = [{e.fpir: e.tpir for e in g.tpir}.get(entry.fpir) if g else None for g in found]
            rows.append(rate_row(f"{gallery.name}, TPIR at FPIR {entry.fpir:g}", rates))
    curves = {label: np.array(result.curve).T for label, result in models.items() if result.curve}
    return {
        "name": name,
        "models": tuple(models),
        "result": every[-1],
        "reached": [(label, result.tar[0]) for label, result in models.items() if result.tar],
        "rows": rows,
        "plots": [plots.template_roc_plot(curves)] if curves else [],
    }


def result_rows(models: list[Evaluation]) -> list[Row]:
    """The table of rates, a column for each model; what one of them lacks shows a dash there."""
    results = [model.summary.verification for model in models]
    centred = [model.summary.centred for model in models]
    errors = [equal_error_rate(roc(model.pairs)) for model in models]
    return [
        rate_row("accuracy", [result.accuracy for result in results]),
        Row("deviation over folds", tuple(Cell(f"± {result.deviation:.2%}") for result in results)),
        _row(
            "accuracy, mean of the other folds subtracted",
            [f"{one.accuracy:.2%} ± {one.deviation:.2%}" for one in centred],
            [one.accuracy for one in centred],
        ),
        rate_row("AUC", [result.auc for result in results]),
        _row("equal error rate", [f"{error:.2%}" for error in errors], [-error for error in errors]),
        *tar_rows([result.tar for result in results]),
    ]


def difference_rows(models: Mapping[str, Evaluation]) -> list[Row]:
    """How much each model is above the first, on the same pairs and under the same draws of the people, in points."""
    (first, base), *others = models.items()
    fars = tuple(entry.far for entry in base.summary.verification.tar)
    settings = base.summary.settings
    gains = [
        paired_differences(model.pairs, base.pairs, fars, min(settings.resamples, DRAWS), settings.seed)
        for _, model in others
    ]
    names = ["accuracy", *(f"TAR at FAR {far:g}" for far in fars)]
    return [
        Row(f"{name} above {first}, points", (Cell(NONE), *(Cell(_gain(gain[i])) for gain in gains)))
        for i, name in enumerate(names)
    ]


def tar_rows(models: Sequence[tuple[TarAtFar, ...]]) -> list[Row]:
    """A line for each FAR that any model has, falling."""
    found = [{entry.far: entry.tar for entry in tars} for tars in models]
    every = sorted({far for tars in found for far in tars}, reverse=True)
    return [rate_row(f"TAR at FAR {far:g}", [tars.get(far) for tars in found]) for far in every]


def rate_row(name: str, rates: Sequence[Rate | None]) -> Row:
    """A rate of each model with its interval; the highest is the best."""
    texts = [NONE if rate is None else f"{rate.value:.2%} ({rate.low:.1%} to {rate.high:.1%})" for rate in rates]
    return _row(name, texts, [float("-inf") if rate is None else rate.value for rate in rates])


def _row(name: str, texts: Sequence[str], values: Sequence[float]) -> Row:
    """A row in which the highest of `values` is the best; of one model none is."""
    best = max(values) if len(values) > 1 else float("inf")
    return Row(name, tuple(Cell(text, value == best) for text, value in zip(texts, values, strict=True)))


def _gain(gain: Estimate) -> str:
    mean, low, high = (100 * value for value in (gain.mean, gain.low, gain.high))
    return f"{mean:+.2f} ({low:+.1f} to {high:+.1f})"


def _progress(steps: Sequence[Evaluation]) -> tuple[FloatArray, FloatArray]:
    rates = [evaluation.summary.verification.accuracy for evaluation in steps]
    return np.array([e.step for e in steps], np.float64), np.array([(r.value, r.low, r.high) for r in rates])


def _score_limits(evaluations: list[Evaluation]) -> tuple[float, float]:
    """One axis for every histogram, so that models can be compared by eye."""
    low = min(float(e.pairs.scores.min()) for e in evaluations)
    return max(-1.0, low - 0.05), 1.0
