"""One table of one or several networks on every set of a suite: as HTML, Markdown, LaTeX and CSV.

Networks are rows and sets columns. What stands in a column was measured on the same pairs; a network whose result is of
other pairs, or that has none, shows a dash.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.evaluation.reports.cells import NONE, points
from pipeline.evaluation.reports.pages import render
from pipeline.evaluation.results import Evaluation, TemplateResult
from pipeline.evaluation.scoring.estimates import Estimate, estimates, paired_differences
from pipeline.evaluation.scoring.rates import Rate
from pipeline.files import write_file

FAR = 1e-4  # of templates, at which most papers report IJB
DRAWS = 200  # of the people, for a difference
NOTE = (
    "Pairs: mean accuracy over folds, each at the threshold of the others. Templates: 1:1 TAR at FAR 1e-4. In "
    "brackets: 95% intervals over people; differences are taken on the same people, pairs and draws. The average is of "
    "the accuracies; it has no interval, since LFW, CALFW and CPLFW show the same people."
)
ACCURACY = "accuracy"
ESCAPED = str.maketrans({"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"})
ESCAPED |= str.maketrans({char: f"\\{char}" for char in "&%$#_{}"})


@dataclass(frozen=True)
class Entry:
    """What a network reaches on a set, with its interval, and how far that is above the first network's.

    No interval: of an average; no gain: not comparable.
    """

    value: float
    interval: tuple[float, float] | None = None
    gain: Estimate | None = None

    @classmethod
    def of(cls, rate: Rate, gain: Estimate | None = None) -> Entry:
        """Of a rate that was measured."""
        return cls(rate.value, (rate.low, rate.high), gain)


@dataclass(frozen=True)
class Column:
    """A set: its name, what is measured, and what each network reaches."""

    name: str
    measure: str
    entries: Mapping[str, Entry]

    @property
    def best(self) -> float | None:
        """The highest rate, of several networks."""
        values = [entry.value for entry in self.entries.values()]
        return max(values) if len(values) > 1 else None


def pairs_column(name: str, found: Mapping[str, Evaluation]) -> Column:
    """The accuracies on a set of pairs; the first network is the one that the others are compared with."""
    (first, base), *others = found.items()
    entries = {first: Entry.of(base.summary.verification.accuracy)}
    for network, mine in others:
        gain, *_ = paired_differences(mine.pairs, base.pairs, (), DRAWS)
        entries[network] = Entry.of(mine.summary.verification.accuracy, gain)
    return Column(name, ACCURACY, entries)


def templates_column(name: str, found: Mapping[str, TemplateResult]) -> Column:
    """TAR at `FAR` on a set of templates, compared with the first network; one judged at other FARs has no entry."""
    entries: dict[str, Entry] = {}
    first = next(iter(found.values()))
    for network, result in found.items():
        gain = result.above(first).get(f"TAR at FAR {FAR:g}") if result is not first else None
        for entry in result.tar:
            if entry.far == FAR:
                entries[network] = Entry.of(entry.tar, estimates(gain)[0] if gain else None)
    return Column(name, f"TAR at FAR {FAR:g}", entries)


def with_average(columns: Sequence[Column]) -> list[Column]:
    """The columns, and of several sets of pairs the average behind them, of networks that have all of these."""
    pairs = [column.entries for column in columns if column.measure == ACCURACY]
    if len(pairs) < 2:
        return list(columns)
    average = {
        network: Entry(sum(entries[network].value for entries in pairs) / len(pairs))
        for network in pairs[0]
        if all(network in entries for entries in pairs)
    }
    place = sum(column.measure == ACCURACY for column in columns)
    return [*columns[:place], Column("average", ACCURACY, average), *columns[place:]]


def write_suite(title: str, networks: Sequence[str], columns: Sequence[Column], out: Path) -> list[Path]:
    """Write ``suite.html``, ``.md``, ``.tex`` and ``.csv`` to the folder `out`; returns their paths.

    Columns of pairs come first, and their average behind them.
    """
    columns = with_average(columns)
    contents = {
        "suite.html": _html(title, networks, columns),
        "suite.md": _markdown(title, networks, columns),
        "suite.tex": _latex(networks, columns),
        "suite.csv": _csv(networks, columns),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_file(out / name, content.encode())
    return [out / name for name in contents]


def _html(title: str, networks: Sequence[str], columns: Sequence[Column]) -> str:
    rows = []
    for network in networks:
        cells = [(_rate(column, network), _is_best(column, network)) for column in columns]
        rows.append((network, cells))
    for network in networks[1:]:
        cells = [(_gain(column, network), False) for column in columns]
        rows.append((_above(network, networks), cells))
    headings = [(column.name, column.measure) for column in columns]
    return render("suite.html", title=title, note=NOTE, headings=headings, rows=rows)


def _markdown(title: str, networks: Sequence[str], columns: Sequence[Column]) -> str:
    lines = [f"# {title}", "", "| | " + " | ".join(f"{column.name}, {column.measure}" for column in columns) + " |"]
    lines.append("| --- |" + " ---: |" * len(columns))
    for network in networks:
        cells = []
        for column in columns:
            text = _rate(column, network)
            cells.append(f"**{text}**" if _is_best(column, network) else text)
        lines.append(f"| {network} | {' | '.join(cells)} |")
    for network in networks[1:]:
        cells = [_gain(column, network) for column in columns]
        lines.append(f"| {_above(network, networks)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", NOTE, ""])


def _latex(networks: Sequence[str], columns: Sequence[Column]) -> str:
    """A tabular of the booktabs package, in per cent and without intervals, as papers print it."""
    lines = [rf"\begin{{tabular}}{{l{'c' * len(columns)}}}", r"\toprule"]
    lines.append(" & ".join(["Network", *(column.name.translate(ESCAPED) for column in columns)]) + r" \\")
    lines.append(r"\midrule")
    for network in networks:
        cells = [network.translate(ESCAPED)]
        for column in columns:
            entry = column.entries.get(network)
            text = "--" if entry is None else f"{100 * entry.value:.2f}"
            cells.append(rf"\textbf{{{text}}}" if _is_best(column, network) else text)
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _csv(networks: Sequence[str], columns: Sequence[Column]) -> str:
    """A line for each network and set, with every number."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    header = ("network", "set", "measure", "value", "low", "high", "above_first", "above_low", "above_high")
    writer.writerow(header)
    for column in columns:
        for network in networks:
            entry = column.entries.get(network)
            if entry is not None:
                low, high = entry.interval or ("", "")
                gain = ("", "", "") if entry.gain is None else (entry.gain.mean, entry.gain.low, entry.gain.high)
                writer.writerow((network, column.name, column.measure, entry.value, low, high, *gain))
    return stream.getvalue()


def _rate(column: Column, network: str) -> str:
    entry = column.entries.get(network)
    if entry is None:
        return NONE
    interval = "" if entry.interval is None else " ({:.1%} to {:.1%})".format(*entry.interval)
    return f"{entry.value:.2%}{interval}"


def _gain(column: Column, network: str) -> str:
    entry = column.entries.get(network)
    return points(entry.gain if entry else None)


def _is_best(column: Column, network: str) -> bool:
    entry = column.entries.get(network)
    return entry is not None and entry.value == column.best


def _above(network: str, networks: Sequence[str]) -> str:
    return f"{network} above {networks[0]}, points"
