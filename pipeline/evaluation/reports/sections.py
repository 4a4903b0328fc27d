"""What a report shows of one comparison: its table, its plots, its worst errors, and a sentence that leads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any, NamedTuple

import numpy as np

from pipeline.evaluation.reports import plots
from pipeline.evaluation.reports.cells import NONE, points
from pipeline.evaluation.reports.hardest import hardest_tiles
from pipeline.evaluation.results import Evaluation, Gallery, Identification, TemplateResult
from pipeline.evaluation.scoring.angles import ClassAngles
from pipeline.evaluation.scoring.bootstrap import roc_band
from pipeline.evaluation.scoring.estimates import paired_differences
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


@dataclass(frozen=True)
class Cell:
    """A value of a table, and whether it is the best of its row."""

    text: str
    best: bool = False


class Figure(NamedTuple):
    """What one model reaches: the text of its cell, and the value by which the best of a row is found, if any is."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Row:
    """One line of a results table: a quantity, and what each model reaches."""

    name: str
    values: tuple[Cell, ...]


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
        "plots": [*verification_plots(models), *angle_plots(last.angles), *progress_plots(steps)],
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
    """What the template shows of a search among distractors, models side by side."""
    cmcs = [result.cmc for result in models.values()]
    by_rank = list(zip_longest(*cmcs))  # None for a model whose search was not as deep
    rows = [rate_row(f"rank {depth}", by_rank[depth - 1]) for depth in sorted({1, *map(len, cmcs)})]
    return {
        "name": name,
        "models": tuple(models),
        "result": list(models.values())[-1],
        "reached": [(label, result.cmc[0]) for label, result in models.items()],
        "rows": rows + tar_rows([result.tar for result in models.values()]),
        "plots": [plots.cmc_plot({label: _with_bounds(result.cmc) for label, result in models.items()})],
    }


def template_section(name: str, models: Mapping[str, TemplateResult]) -> dict[str, Any]:
    """What the template shows of IJB: 1:1 and each gallery, models side by side."""
    every = list(models.values())
    rows = tar_rows([result.tar for result in every])
    for gallery in every[-1].galleries:
        rows += gallery_rows(gallery, [_gallery(result, gallery.name) for result in every])
    curves = {label: np.array(result.curve).T for label, result in models.items() if result.curve}
    return {
        "name": name,
        "models": tuple(models),
        "result": every[-1],
        "reached": [(label, result.tar[0]) for label, result in models.items() if result.tar],
        "rows": rows,
        "plots": [plots.template_roc_plot(curves)] if curves else [],
    }


def result_rows(models: Sequence[Evaluation]) -> list[Row]:
    """The table of rates, a column for each model; what one of them lacks shows a dash there."""
    columns = list(map(_results, models))
    rows = []
    for name in columns[0]:
        figures = [column[name] for column in columns]
        rows.append(_row(name, figures))
    return rows + tar_rows([model.summary.verification.tar for model in models])


def _results(model: Evaluation) -> dict[str, Figure]:
    """A model's column of the table, but its TARs."""
    result, centred = model.summary.verification, model.summary.centred
    error = equal_error_rate(roc(model.pairs))
    subtracted = f"{centred.accuracy:.2%} ± {centred.deviation:.2%}"
    return {
        "accuracy": _figure(result.accuracy),
        "deviation over folds": Figure(f"± {result.deviation:.2%}"),
        "accuracy, mean of the other folds subtracted": Figure(subtracted, centred.accuracy),
        "AUC": _figure(result.auc),
        "equal error rate": Figure(f"{error:.2%}", -error),
    }


def difference_rows(models: Mapping[str, Evaluation]) -> list[Row]:
    """How much each model is above the first, on the same pairs and under the same draws of the people, in points."""
    (first, base), *others = models.items()
    fars = tuple(entry.far for entry in base.summary.verification.tar)
    settings = base.summary.settings
    draws = min(settings.resamples, DRAWS)
    gains = [paired_differences(model.pairs, base.pairs, fars, draws, settings.seed) for _, model in others]
    rows = []
    for i, name in enumerate(["accuracy", *map(_at_far, fars)]):
        figures = [Figure(points(gain[i])) for gain in gains]
        rows.append(_row(f"{name} above {first}, points", [Figure(NONE), *figures]))
    return rows


def tar_rows(models: Sequence[tuple[TarAtFar, ...]]) -> list[Row]:
    """A line for each FAR that any model has, falling."""
    fars = {entry.far for entry in chain.from_iterable(models)}
    rows = []
    for far in sorted(fars, reverse=True):
        rates = [_tar(tars, far) for tars in models]
        rows.append(rate_row(_at_far(far), rates))
    return rows


def gallery_rows(shown: Gallery, found: Sequence[Gallery | None]) -> list[Row]:
    """A line for each rank and for each FPIR of the gallery `shown`, given each model's own."""
    rows = []
    for i, rank in enumerate(RANKS):
        ranks = [gallery.ranks[i] if gallery else None for gallery in found]
        rows.append(rate_row(f"{shown.name}, rank {rank}", ranks))
    for entry in shown.tpir:
        tpirs = [_tpir(gallery, entry.fpir) for gallery in found]
        rows.append(rate_row(f"{shown.name}, TPIR at FPIR {entry.fpir:g}", tpirs))
    return rows


def rate_row(name: str, rates: Iterable[Rate | None]) -> Row:
    """A rate of each model with its interval; the highest is the best."""
    return _row(name, list(map(_figure, rates)))


def _figure(rate: Rate | None) -> Figure:
    if rate is None:
        return Figure(NONE)
    return Figure(f"{rate.value:.2%} ({rate.low:.1%} to {rate.high:.1%})", rate.value)


def _row(name: str, figures: Sequence[Figure]) -> Row:
    """A row in which the highest value is the best; of one model none is."""
    values = [figure.value for figure in figures if figure.value is not None]
    best = max(values, default=None) if len(figures) > 1 else None
    cells = [Cell(text, value is not None and value == best) for text, value in figures]
    return Row(name, tuple(cells))


def _at_far(far: float) -> str:
    return f"TAR at FAR {far:g}"


def _tar(tars: Iterable[TarAtFar], far: float) -> Rate | None:
    return next((entry.tar for entry in tars if entry.far == far), None)


def _gallery(result: TemplateResult, name: str) -> Gallery | None:
    return next((gallery for gallery in result.galleries if gallery.name == name), None)


def _tpir(gallery: Gallery | None, fpir: float) -> Rate | None:
    return next((entry.tpir for entry in gallery.tpir if entry.fpir == fpir), None) if gallery else None


def _with_bounds(rates: Sequence[Rate]) -> FloatArray:
    """`[n, 3]`: each rate's value, and its interval's low and high."""
    return np.array([(rate.value, rate.low, rate.high) for rate in rates])


def _score_limits(models: Iterable[Evaluation]) -> tuple[float, float]:
    """One axis for every histogram, so that models can be compared by eye."""
    low = min(float(model.pairs.scores.min()) for model in models)
    return max(-1.0, low - 0.05), 1.0
