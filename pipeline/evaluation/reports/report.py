"""One self-contained HTML page about one run or several: what was reached, where it fails, how it was trained.

The page holds its style, its plots (inline SVG) and its faces (base64 JPEG): it can be mailed, and opens without a
network or the run's folder. One run is shown before and after training; several are shown side by side.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pipeline.evaluation.reports import plots
from pipeline.evaluation.reports.hardest import hardest_tiles
from pipeline.evaluation.reports.pages import render
from pipeline.evaluation.results import Evaluation, Identification, Rate, TarAtFar, load, load_identification
from pipeline.evaluation.scoring.angles import ClassAngles
from pipeline.evaluation.scoring.bootstrap import roc_band
from pipeline.evaluation.scoring.verification import FloatArray, equal_error_rate, roc
from pipeline.files import write_file
from pipeline.run.folder import RunFolder
from pipeline.run.metrics_log import mean_seconds, read_metrics, series

CURVES = (
    ("loss", "loss", False),
    ("margin_lambda", "λ", True),
    ("learning_rate", "learning rate", False),
    ("global_samples_per_second", "throughput, images/s", False),
)
WORST = 8  # people named with their angles
BAND_POINTS = 25  # FARs at which a ROC's interval is computed

Result = TypeVar("Result", Evaluation, Identification)


@dataclass(frozen=True)
class Row:
    """One line of a results table: a quantity, and what each model reaches."""

    name: str
    values: tuple[str, ...]


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Render the report of the run folders to `out` and return it.

    Parts of a run that do not exist, such as the training log of a run trained elsewhere, are left out. Raises
    ValueError when no run holds a result.
    """
    named = _names(runs)
    verified = _by_set({name: RunFolder(run).evaluations for name, run in named.items()}, load)
    identified = _by_set({name: RunFolder(run).identifications for name, run in named.items()}, load_identification)
    if not verified and not identified:
        folders = ", ".join(map(str, runs))
        raise ValueError(f"{folders}: got no evaluation, wanted one under evaluations/: run stages/evaluate.py first")
    logs = {name: read_metrics(RunFolder(run).metrics) for name, run in named.items()}
    page = render(
        "report.html",
        runs=[
            {"name": name, **_read_facts(RunFolder(run).facts), "recipe": _read_text(RunFolder(run).recipe)}
            for name, run in named.items()
        ],
        training=training_section({name: records for name, records in logs.items() if records}),
        sections=[evaluation_section(name, side_by_side(steps, len(named)), steps) for name, steps in verified.items()],
        identifications=[
            identification_section(name, side_by_side(steps, len(named))) for name, steps in identified.items()
        ],
    )
    write_file(out, page.encode())
    return out


def side_by_side(steps: Mapping[str, list[Result]], num_runs: int) -> dict[str, Result]:
    """What is compared: the first and last step of the only run, or the last step of each of several."""
    if num_runs > 1:
        return {name: results[-1] for name, results in steps.items()}
    (results,) = steps.values()
    return {_step_name(result.step): result for result in (results[0], results[-1])}


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

    `steps` are all evaluated checkpoints by run, drawn where one has more than its first and last.
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
        "others": [(label, e.summary.verification.accuracy.value) for label, e in list(models.items())[:-1]],
        "rows": result_rows(every),
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
    """How the last model's features lie; nothing where no two images show one person."""
    if angles is None or not angles.within_counts.any():
        return []
    return [plots.angle_plot(angles), plots.people_plot(angles)]


def worst_people(angles: ClassAngles | None) -> list[tuple[str, ...]]:
    """The `WORST` people who lie least well apart: name, images, median angle, 95%, nearest person, angle to them."""
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
        Row(f"rank {depth}", tuple(_with_interval(r.cmc[depth - 1]) if depth <= len(r.cmc) else "–" for r in every))
        for depth in depths
    ]
    curves = {
        label: np.array([(rate.value, rate.low, rate.high) for rate in result.cmc]) for label, result in models.items()
    }
    return {
        "name": name,
        "models": tuple(models),
        "result": every[-1],
        "rows": [*rows, *tar_rows([result.tar for result in every])],
        "plots": [plots.cmc_plot(curves)],
    }


def result_rows(models: list[Evaluation]) -> list[Row]:
    """The table of rates, a column for each model; what one of them lacks shows a dash there."""
    results = [model.summary.verification for model in models]
    return [
        Row("accuracy", tuple(_with_interval(result.accuracy) for result in results)),
        Row("deviation over folds", tuple(f"± {result.deviation:.2%}" for result in results)),
        Row(
            "accuracy, mean of the other folds subtracted",
            tuple(f"{model.summary.centred.accuracy:.2%} ± {model.summary.centred.deviation:.2%}" for model in models),
        ),
        Row("AUC", tuple(_with_interval(result.auc) for result in results)),
        Row("equal error rate", tuple(f"{equal_error_rate(roc(model.pairs)):.2%}" for model in models)),
        *tar_rows([result.tar for result in results]),
    ]


def tar_rows(models: Sequence[tuple[TarAtFar, ...]]) -> list[Row]:
    """A line for each FAR that any model has, falling."""
    found = [{entry.far: entry.tar for entry in tars} for tars in models]
    return [
        Row(f"TAR at FAR {far:g}", tuple(_with_interval(tars[far]) if far in tars else "–" for tars in found))
        for far in sorted({far for tars in found for far in tars}, reverse=True)
    ]


def _names(runs: Sequence[Path]) -> dict[str, Path]:
    """A name for each run: its folder's, or its whole path where two folders share one."""
    short = [run.resolve().name for run in runs]
    return {name if short.count(name) == 1 else str(run): run for name, run in zip(short, runs, strict=True)}


def _by_set(folders: Mapping[str, Path], read: Callable[[Path], Result]) -> dict[str, dict[str, list[Result]]]:
    """For each set in the runs' folders of a kind, the runs that have results on it, each by rising steps."""
    loaded = {name: _load_sets(folder, read) for name, folder in folders.items()}
    sets = sorted({name for found in loaded.values() for name in found})
    return {name: {run: found[name] for run, found in loaded.items() if name in found} for name in sets}


def _load_sets(folder: Path, read: Callable[[Path], Result]) -> dict[str, list[Result]]:
    """Every result below `folder`, by the name of its set and rising steps."""
    files = {below.name: sorted(below.glob("step-*.json")) for below in folder.glob("*/")}
    return {name: [read(file) for file in found] for name, found in files.items() if found}


def _with_interval(rate: Rate) -> str:
    return f"{rate.value:.2%} ({rate.low:.1%} to {rate.high:.1%})"


def _step_name(step: int) -> str:
    return "before training" if step == 0 else f"after step {step:,}"


def _progress(steps: Sequence[Evaluation]) -> tuple[FloatArray, FloatArray]:
    rates = [evaluation.summary.verification.accuracy for evaluation in steps]
    return np.array([e.step for e in steps], np.float64), np.array([(r.value, r.low, r.high) for r in rates])


def _score_limits(evaluations: list[Evaluation]) -> tuple[float, float]:
    """One axis for every histogram, so that models can be compared by eye."""
    low = min(float(e.pairs.scores.min()) for e in evaluations)
    return max(-1.0, low - 0.05), 1.0


def _read_text(file: Path) -> str:
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


def _read_facts(file: Path) -> dict[str, Any]:
    """``run.json``, with an empty value for each fact that the template asks for and the file lacks."""
    facts: dict[str, Any] = {"command": "", "versions": {}, "started": "", "ranks": None, "device": ""}
    if not file.is_file():
        return facts
    try:
        return {**facts, **json.loads(file.read_text(encoding="utf-8"))}
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{file}: {error}, wanted a JSON object") from None
