"""One self-contained HTML page about one run or several: its rates, its worst errors, its training.

The page holds its style, its plots (inline SVG) and its faces (base64 JPEG): it can be mailed, and opens without a
network or the run's folder. One run is shown before and after training; several, and networks of another origin, are
shown side by side, with their differences on the same people.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pipeline.evaluation.reports.pages import render
from pipeline.evaluation.reports.sections import (
    evaluation_section,
    identification_section,
    template_section,
    training_section,
)
from pipeline.evaluation.results import (
    Evaluation,
    Identification,
    TemplateResult,
    load,
    load_identification,
    load_templates,
)
from pipeline.files import write_file
from pipeline.run.folder import RunFolder
from pipeline.run.metrics_log import read_metrics

Result = TypeVar("Result", Evaluation, Identification, TemplateResult)


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Render the report of the run folders to `out` and return it.

    Parts of a run that do not exist, such as its training log, are left out. Raises
    ValueError when no run holds a result.
    """
    named = _names(runs)
    verified = _by_set(named, lambda run: run.evaluations, load, Evaluation.without_scores)
    identified = _by_set(named, lambda run: run.identifications, load_identification)
    templates = _by_set(named, lambda run: run.templates, load_templates)
    if not verified and not identified and not templates:
        folders = ", ".join(map(str, runs))
        raise ValueError(f"{folders}: got no evaluation, wanted one under evaluations/: run stages/evaluate.py first")
    trained = not all(run.network.is_file() for run in named.values())
    shown = [{"name": name, **_read_facts(run), "recipe": _read_text(run.recipe)} for name, run in named.items()]
    logs = {name: read_metrics(run.metrics) for name, run in named.items()}
    logs = {name: records for name, records in logs.items() if records}
    compared = partial(side_by_side, num_runs=len(named), trained=trained)
    page = render(
        "report.html",
        runs=shown,
        training=training_section(logs),
        sections=[evaluation_section(name, compared(steps), steps) for name, steps in verified.items()],
        identifications=[identification_section(name, compared(steps)) for name, steps in identified.items()],
        templates=[template_section(name, compared(steps)) for name, steps in templates.items()],
    )
    write_file(out, page.encode())
    return out


def side_by_side(steps: Mapping[str, list[Result]], num_runs: int, trained: bool = True) -> dict[str, Result]:
    """What is compared: the first and last step of the only run, or the last step of each of several.

    A network of another origin, which is not `trained` here, has no steps.
    """
    if num_runs > 1:
        return {name: results[-1] for name, results in steps.items()}
    ((run, results),) = steps.items()
    return {_label(run, result.step, trained): result for result in (results[0], results[-1])}


def _names(runs: Sequence[Path]) -> dict[str, RunFolder]:
    """A name for each run: its folder's, or its whole path if two folders share one."""
    short = [run.resolve().name for run in runs]
    named = {}
    for name, run in zip(short, runs, strict=True):
        named[name if short.count(name) == 1 else str(run)] = RunFolder(run)
    return named


def _by_set(
    runs: Mapping[str, RunFolder],
    folder_of: Callable[[RunFolder], Path],
    read: Callable[[Path], Result],
    between: Callable[[Result], Result] | None = None,
) -> dict[str, dict[str, list[Result]]]:
    """Each comparison in the runs' folders of a kind, with the results of the runs that have made it, by rising steps.

    What is compared decides, not the name that it was given: two names of one list are one comparison, and one name of
    two lists is two. `between` gives what is kept of a run's results but the first and the last.
    """
    found: dict[str, dict[str, list[Result]]] = {}
    names: dict[str, dict[str, None]] = {}
    for run, folder in runs.items():
        for file in sorted(folder_of(folder).glob("*/step-*.json"), key=_age):
            result = read(file)
            results = found.setdefault(result.compared, {}).setdefault(run, [])
            if results and results[-1].step == result.step:  # under two names: the last one says it, once
                results.pop()
            results.append(result)
            if between and len(results) > 2:
                results[-2] = between(results[-2])
            names.setdefault(result.compared, {})[file.parent.name] = None
    titles = {digest: ", ".join(given) for digest, given in names.items()}
    uses = Counter(titles.values())
    by_title = {}
    for digest, title in titles.items():
        by_title[title if uses[title] == 1 else f"{title} ({digest[:8]})"] = found[digest]
    return dict(sorted(by_title.items()))


def _age(file: Path) -> tuple[str, int, str]:
    """By rising steps; of one step, the last that was written comes last."""
    return file.name, file.stat().st_mtime_ns, file.parent.name


def _label(run: str, step: int, trained: bool) -> str:
    """Of the only run: before or after training; a network of another origin has no steps, and its own name."""
    if not trained:
        return run
    if step:
        return f"after step {step:,}"
    return "before training"


def _read_text(file: Path) -> str:
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


def _read_facts(run: RunFolder) -> dict[str, Any]:
    """``run.json`` or ``network.json``, with an empty value for each fact that the template asks for and both lack."""
    facts: dict[str, Any] = {"command": "", "versions": {}, "started": "", "ranks": None, "device": "", "file": ""}
    for file in (run.network, run.facts):
        if file.is_file():
            try:
                facts |= {key: value for key, value in json.loads(_read_text(file)).items() if key != "name"}
            except (AttributeError, json.JSONDecodeError) as error:
                raise ValueError(f"{file}: {error}, wanted a JSON object") from None
    return facts
