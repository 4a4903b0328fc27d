"""A study's tables, as Markdown and as one self-contained HTML page with plots, in the layout of the paper's.

A column is an arm and a row an evaluation set: the published accuracy, the accuracy here with its interval, and
its difference to the first column, on the same people and seeds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pipeline.evaluation.reports import plots
from pipeline.evaluation.reports.cells import NONE, points
from pipeline.evaluation.reports.pages import render
from pipeline.evaluation.scoring.draws import Draws
from pipeline.evaluation.scoring.estimates import Estimate, difference, estimate
from pipeline.evaluation.study import Study, Table
from pipeline.files import write_file

# Of one evaluation set: arm and seed to what the run reached.
Samples = Mapping[tuple[str, int], Draws]

NOTE = (
    "Accuracy is the mean over folds, each at the threshold of the others. Intervals are 95% over seeds and people "
    "together, and over people alone for a single seed; differences are taken on the same people and seeds."
)


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

    @property
    def title(self) -> str:
        """Of the table, with the set."""
        return f"{self.table.title}: {self.set_name}"

    @property
    def headings(self) -> list[str]:
        """Of the columns."""
        return [column.heading for column in self.columns]


def comparisons(study: Study, samples: Mapping[str, Samples]) -> list[Comparison]:
    """Every table on every evaluation set, from the runs that are done."""
    found = []
    for table, name in product(study.tables, study.sets):
        columns = _columns(study, table, name, samples[name])
        found.append(Comparison(table, name, columns))
    return found


def write_tables(
    study: Study, samples: Mapping[str, Samples], out: Path, over_chance: Mapping[str, float] | None = None
) -> None:
    """Write ``study.md`` and ``study.html`` to the folder `out`; `over_chance` as for `notes`."""
    found, below = comparisons(study, samples), notes(over_chance or {})
    write_file(out / "study.md", markdown(study, found, below).encode())
    write_file(out / "study.html", page(study, found, below).encode())


def notes(over_chance: Mapping[str, float]) -> str:
    """What stands below the tables: how to read them, and which runs did not train.

    Args:
        over_chance: of each run that is done, its loss at the end over that of guessing.
    """
    untrained = [f"{name} ({ratio:.2f} ×)" for name, ratio in over_chance.items() if ratio >= 1]
    if not untrained:
        return NOTE
    return f"{NOTE} No better than guessing at the end, by the loss over that of guessing: {', '.join(untrained)}."


def markdown(study: Study, found: Sequence[Comparison], note: str = NOTE) -> str:
    """The tables for a README or an issue."""
    lines = [f"# {study.title}", "", lead(found), ""]
    for comparison in found:
        lines += [f"## {comparison.title}", ""]
        lines += ["| | " + " | ".join(comparison.headings) + " |"]
        lines += ["| --- |" + " ---: |" * len(comparison.columns)]
        lines += [f"| {name} | {' | '.join(values)} |" for name, values in rows(comparison)]
        lines += [""]
        if comparison.table.source:
            lines += [f"Published: {comparison.table.source}", ""]
    return "\n".join([*lines, note, ""])


def page(study: Study, found: Sequence[Comparison], note: str = NOTE) -> str:
    """The tables and their plots as an HTML page that needs nothing beside it."""
    return render("study.html", title=study.title, lead=lead(found), note=note, sections=list(map(_section, found)))


def lead(found: Sequence[Comparison]) -> str:
    """The sentence to begin with: which arm is best in the first table that has a result, and by how much."""
    for comparison in found:
        done = [(column.here.mean, column) for column in comparison.columns if column.here is not None]
        if done:
            mean, best = max(done, key=lambda pair: pair[0])
            base = comparison.columns[0]
            above = f", {points(best.gain)} points above {base.heading}" if best is not base and best.gain else ""
            return f"On {comparison.set_name}, {best.heading} is right in {mean:.2%} of pairs{above}."
    return "No run is done yet."


def rows(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """The lines of a table: its name, and a cell for each column."""
    columns = comparison.columns
    lines = [
        ("published", list(map(_published, columns))),
        ("here (95% interval)", list(map(_here, columns))),
        ("each seed", list(map(_each_seed, columns))),
        (f"above {columns[0].heading}, points", [NONE, *(points(column.gain) for column in columns[1:])]),
        ("seeds done", list(map(_seeds_done, columns))),
    ]
    return lines if comparison.table.published else lines[1:]


def _columns(study: Study, table: Table, name: str, samples: Samples) -> tuple[Column, ...]:
    of_arm: defaultdict[str, dict[int, Draws]] = defaultdict(dict)
    for (arm, seed), sample in samples.items():
        of_arm[arm][seed] = sample
    published = table.published.get(name, (None,) * len(table.columns))
    first = next(iter(table.columns.values()))
    base = of_arm[first]
    columns = []
    for (heading, arm), percent in zip(table.columns.items(), published, strict=True):
        mine = of_arm[arm]
        columns.append(
            Column(
                heading=heading,
                published=None if percent is None else percent / 100,
                here=estimate(mine) if mine else None,
                gain=difference(
                    _beside_every_seed(mine, base) if arm in study.networks else mine,
                    _beside_every_seed(base, mine) if first in study.networks else base,
                ),
                seeds=(len(mine), len(study.seeds_of(arm))),
            )
        )
    return tuple(columns)


def _beside_every_seed(network: Mapping[int, Draws], runs: Mapping[int, Draws]) -> dict[int, Draws]:
    """A network that is not trained here is the same beside every seed of an arm."""
    return {seed: sample for seed in runs for sample in network.values()}


def _section(comparison: Comparison) -> dict[str, Any]:
    """What the template shows of a table."""
    return {
        "title": comparison.title,
        "headings": comparison.headings,
        "rows": rows(comparison),
        "source": comparison.table.source,
        "plot": _plot(comparison),
    }


def _plot(comparison: Comparison) -> str:
    """Ours beside the published ones, each on its own axis: their sizes differ, their order is compared."""
    here: dict[str, Sequence[float] | None] = dict.fromkeys(comparison.headings)
    for column in comparison.columns:
        if column.here is not None:
            here[column.heading] = (column.here.mean, column.here.low, column.here.high, *column.here.values)
    return plots.study_plot(here, {column.heading: column.published for column in comparison.columns})


def _published(column: Column) -> str:
    return NONE if column.published is None else f"{column.published:.2%}"


def _here(column: Column) -> str:
    rate = column.here
    if rate is None:
        return NONE
    return f"{rate.mean:.2%} ({rate.low:.1%} to {rate.high:.1%})"


def _each_seed(column: Column) -> str:
    return NONE if column.here is None else ", ".join(f"{value:.1%}" for value in column.here.values)


def _seeds_done(column: Column) -> str:
    done, wanted = column.seeds
    return f"{done} of {wanted}"
