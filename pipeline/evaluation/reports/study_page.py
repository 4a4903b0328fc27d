"""A study's tables, as Markdown and as one self-contained HTML page with plots, in the layout of the paper's.

A column is an arm and a row an evaluation set: the published accuracy, the accuracy here with its interval, and
its difference to the first column, on the same people and seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.evaluation.reports import plots
from pipeline.evaluation.reports.pages import render
from pipeline.evaluation.scoring.estimates import Estimate, Sample, difference, estimate
from pipeline.evaluation.study import Study, Table
from pipeline.files import write_file

NONE = "–"

# Of one evaluation set: arm and seed to what the run reached.
Samples = Mapping[tuple[str, int], Sample]


@dataclass(frozen=True)
class Column:
    """What one arm reached on one set; None means missing.

    Attributes:
        published: accuracy between 0 and 1.
        gain: over the table's first column.
        seeds: that are done, of how many.
    """

    heading: str
    published: float | None
    here: Estimate | None
    gain: Estimate | None
    seeds: tuple[int, int]


@dataclass(frozen=True)
class Comparison:
    """One table on one evaluation set."""

    table: Table
    set_name: str
    columns: tuple[Column, ...]


def comparisons(study: Study, samples: Mapping[str, Samples]) -> list[Comparison]:
    """Every table on every evaluation set, from the runs that are done."""
    return [
        Comparison(table, name, tuple(_columns(study, table, name, samples[name])))
        for table in study.tables
        for name in study.sets
    ]


def write_tables(study: Study, samples: Mapping[str, Samples], out: Path) -> None:
    """Write ``study.md`` and ``study.html`` to the folder `out`."""
    found = comparisons(study, samples)
    write_file(out / "study.md", markdown(study, found).encode())
    write_file(out / "study.html", page(study, found).encode())


def markdown(study: Study, found: Sequence[Comparison]) -> str:
    """The tables for a README or an issue."""
    lines = [f"# {study.title}", ""]
    for comparison in found:
        lines += [f"## {comparison.table.title}: {comparison.set_name}", ""]
        lines += ["| | " + " | ".join(column.heading for column in comparison.columns) + " |"]
        lines += ["| --- |" + " ---: |" * len(comparison.columns)]
        lines += [f"| {name} | {' | '.join(values)} |" for name, values in rows(comparison)]
        lines += ["", *([f"Published: {comparison.table.source}", ""] if comparison.table.source else [])]
    return "\n".join([*lines, NOTE, ""])


def page(study: Study, found: Sequence[Comparison]) -> str:
    """The tables and their plots as an HTML page that needs nothing beside it."""
    return render(
        "study.html",
        title=study.title,
        note=NOTE,
        sections=[
            {
                "title": f"{comparison.table.title}: {comparison.set_name}",
                "headings": [column.heading for column in comparison.columns],
                "rows": rows(comparison),
                "source": comparison.table.source,
                "plot": _plot(comparison),
            }
            for comparison in found
        ],
    )


def rows(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """The lines of a table: its name, and a cell for each column."""
    columns = comparison.columns
    gains = [None, *(column.gain for column in columns[1:])]
    lines = [
        ("published", [NONE if c.published is None else f"{c.published:.2%}" for c in columns]),
        ("here (95% interval)", [NONE if c.here is None else _rate(c.here) for c in columns]),
        ("each seed", [NONE if c.here is None else ", ".join(f"{v:.1%}" for v in c.here.values) for c in columns]),
        (f"above {columns[0].heading}, points", [NONE if gain is None else _gain(gain) for gain in gains]),
        ("seeds done", [f"{done} of {wanted}" for done, wanted in (c.seeds for c in columns)]),
    ]
    return lines if comparison.table.published else lines[1:]


NOTE = (
    "Accuracy is the mean over folds, each at the threshold of the others. Intervals are 95% over seeds and people "
    "together, and over people alone for a single seed; differences are taken on the same people and seeds."
)


def _columns(study: Study, table: Table, name: str, samples: Samples) -> list[Column]:
    arms = {arm: {s: sample for (a, s), sample in samples.items() if a == arm} for arm in table.columns.values()}
    base = arms[next(iter(table.columns.values()))]
    published = table.published.get(name, (None,) * len(table.columns))
    return [
        Column(
            heading=heading,
            published=None if percent is None else percent / 100,
            here=estimate(arms[arm]) if arms[arm] else None,
            gain=difference(arms[arm], base),
            seeds=(len(arms[arm]), len(study.seeds_of(arm))),
        )
        for (heading, arm), percent in zip(table.columns.items(), published, strict=True)
    ]


def _plot(comparison: Comparison) -> str:
    """Ours beside the published ones, each on its own axis: their sizes differ, their order is compared."""
    here = {c.heading: c.here for c in comparison.columns}
    return plots.study_plot(
        {name: None if e is None else (e.mean, e.low, e.high, *e.values) for name, e in here.items()},
        {c.heading: c.published for c in comparison.columns},
    )


def _rate(rate: Estimate) -> str:
    # an interval of few seeds may reach beyond 0 and 1
    return f"{rate.mean:.2%} ({max(rate.low, 0):.1%} to {min(rate.high, 1):.1%})"


def _gain(gain: Estimate) -> str:
    mean, low, high = (100 * value for value in (gain.mean, gain.low, gain.high))
    return f"{mean:+.2f} ({low:+.1f} to {high:+.1f})"
