"""The rows of a report's tables: a quantity, and what each model reaches, the best in bold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from pipeline.evaluation.drawn import Drawn
from pipeline.evaluation.reports.cells import NONE, points
from pipeline.evaluation.results import Evaluation, Gallery, TemplateResult
from pipeline.evaluation.scoring.estimates import estimates, paired_differences
from pipeline.evaluation.scoring.insightface_rules import InsightFaceResult
from pipeline.evaluation.scoring.rates import Rate, TarAtFar, TpirAtFpir, Verification
from pipeline.evaluation.scoring.templates import RANKS
from pipeline.evaluation.scoring.verification import equal_error_rate, roc

DRAWS = 200  # of the people, for a difference
BY_INSIGHTFACE = "accuracy by InsightFace's rules"


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


def result_rows(models: Sequence[Evaluation]) -> list[Row]:
    """The table of rates, a column for each model; what one of them lacks shows a dash there."""
    columns = list(map(_results, models))
    rows = []
    for name in columns[0]:
        figures = [column[name] for column in columns]
        if any(figure.text != NONE for figure in figures):
            rows.append(_row(name, figures))
    return rows + tar_rows([model.summary.verification.tar for model in models])


def _results(model: Evaluation) -> dict[str, Figure]:
    """A model's column of the table, but its TARs."""
    result, centred = model.summary.verification, model.summary.centred
    error = equal_error_rate(roc(model.pairs))
    subtracted = f"{centred.accuracy:.2%} ± {centred.deviation:.2%}"
    return {
        "accuracy": _figure(result.accuracy),
        "its standard deviation over folds": Figure(f"± {result.deviation:.2%}"),
        "accuracy by SphereFace's script (centred features)": Figure(subtracted, centred.accuracy),
        "AUC": _figure(result.auc),
        "equal error rate": Figure(f"{error:.2%}", -error),
        BY_INSIGHTFACE: _by_insightface(model.summary.insightface),
    }


def _by_insightface(result: InsightFaceResult | None) -> Figure:
    if result is None:
        return Figure(NONE)
    val = "" if result.val is None else f"; VAL {result.val:.2%} ± {result.val_deviation:.2%}"
    return Figure(f"{result.accuracy:.2%} ± {result.deviation:.2%}{val}", result.accuracy)


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


def drawn_rows(models: Mapping[str, Drawn]) -> list[Row]:
    """How much each model is above the first in what their draws were kept of, in points; none without such draws."""
    (first, base), *others = models.items()
    gains = [{name: estimates(gain)[0] for name, gain in model.above(base).items()} for _, model in others]
    rows = []
    for name in base.draws:
        if any(name in gain for gain in gains):
            figures = [Figure(points(gain.get(name))) for gain in gains]
            rows.append(_row(f"{name} above {first}, points", [Figure(NONE), *figures]))
    return rows


def tar_rows(models: Sequence[tuple[TarAtFar, ...]]) -> list[Row]:
    """A line for each FAR that any model has, falling."""
    rows = []
    for far in _fars(models):
        rates = [_tar(tars, far) for tars in models]
        rows.append(rate_row(_at_far(far), rates))
    return rows


def threshold_rows(models: Sequence[Evaluation]) -> list[Row]:
    """The threshold of each FAR, then that of each fold with the accuracy there; a dash for what a model lacks."""
    results = [model.summary.verification for model in models]
    rows = far_threshold_rows([result.tar for result in results])
    for fold in range(max(len(result.folds) for result in results)):
        rows.append(_row(f"fold {fold + 1}", [_fold(result, fold) for result in results]))
    return rows


def far_threshold_rows(models: Sequence[tuple[TarAtFar, ...]]) -> list[Row]:
    """The lowest similarity that is accepted at each FAR that any model has, falling."""
    rows = []
    for far in _fars(models):
        found = [next((entry for entry in tars if entry.far == far), None) for tars in models]
        rows.append(_row(f"at FAR {far:g}", list(map(_threshold, found))))
    return rows


def group_rows(models: Sequence[Evaluation]) -> list[Row]:
    """FMR and FNMR of each group at the threshold of each FAR that any model has."""
    names = dict.fromkeys(chain.from_iterable((group.name for group in model.summary.groups) for model in models))
    rows = []
    for far in _fars([model.summary.verification.tar for model in models]):
        for name in names:
            errors = [_errors(model, name, far) for model in models]
            rows.append(_row(f"{name}, FAR {far:g}", errors))
    return rows


def _errors(model: Evaluation, name: str, far: float) -> Figure:
    for group in model.summary.groups:
        for errors in group.errors:
            if (group.name, errors.far) == (name, far):
                return Figure(f"FMR {_figure(errors.fmr).text}, FNMR {_figure(errors.fnmr).text}")
    return Figure(NONE)


def gallery_rows(shown: Gallery, found: Sequence[Gallery | None]) -> list[Row]:
    """A line for each rank and for each FPIR of the gallery `shown`, given each model's own."""
    rows = []
    for i, rank in enumerate(RANKS):
        ranks = [gallery.ranks[i] if gallery else None for gallery in found]
        rows.append(rate_row(f"{shown.name}, rank {rank}", ranks))
    return rows + tpir_rows([gallery.tpir if gallery else () for gallery in found], f"{shown.name}, ")


def tpir_rows(models: Sequence[tuple[TpirAtFpir, ...]], of: str = "") -> list[Row]:
    """A line for each FPIR that any model has, falling; `of` begins its name."""
    rows = []
    for fpir in sorted({entry.fpir for entry in chain.from_iterable(models)}, reverse=True):
        rates = [next((entry.tpir for entry in tpirs if entry.fpir == fpir), None) for tpirs in models]
        rows.append(rate_row(f"{of}TPIR at FPIR {fpir:g}", rates))
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


def _fars(models: Sequence[tuple[TarAtFar, ...]]) -> list[float]:
    """The FARs that any model has, falling."""
    return sorted({entry.far for entry in chain.from_iterable(models)}, reverse=True)


def _threshold(entry: TarAtFar | None) -> Figure:
    if entry is None:
        return Figure(NONE)
    return Figure("nothing accepted" if entry.threshold is None else f"{entry.threshold:.4f}")


def _fold(result: Verification, fold: int) -> Figure:
    if fold >= len(result.folds):
        return Figure(NONE)
    return Figure(f"{result.thresholds[fold]:.4f}: {result.folds[fold]:.2%}")


def _at_far(far: float) -> str:
    return f"TAR at FAR {far:g}"


def _tar(tars: Iterable[TarAtFar], far: float) -> Rate | None:
    return next((entry.tar for entry in tars if entry.far == far), None)


def gallery_of(result: TemplateResult, name: str) -> Gallery | None:
    """The result's gallery of this name."""
    return next((gallery for gallery in result.galleries if gallery.name == name), None)
