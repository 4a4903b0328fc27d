#!/usr/bin/env python
"""How runs are doing, a line each: over ssh, without Prometheus, whether they train or have ended.

  python stages/status.py runs/casia20
  python stages/status.py runs
  watch -n 60 python stages/status.py runs/study

A folder that is no run's is searched for runs. All comes from the files in their folders: a run on another host is
seen through the disk that both share. Code 65: there is no run, or one that cannot be read; the others are shown.
"""

from __future__ import annotations

try:
    import cluster.begin  # noqa: F401 - before all that takes long to import
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: {missing}: make install, then source .venv/bin/activate") from None

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.progress import duration
from cluster.stop import EXIT_REFUSED, exit_with, faults_in_one_line, one_line, tell
from pipeline.run.status import Status, runs_in, status_of

COLUMNS: dict[str, Callable[[Status], str]] = {
    "run": lambda status: str(status.run),
    "state": lambda status: status.state,
    "step": lambda status: f"{status.step:,}/{status.steps:,}",
    "left": lambda status: "" if status.left_seconds is None else duration(status.left_seconds),
    "images/s": lambda status: number_in(status, "global_samples_per_second", ",.0f"),
    "loss": lambda status: number_in(status, "loss", ".4f"),
    "accuracy": lambda status: " ".join(f"{name} {value:.2%}" for name, value in status.evaluation.items()),
    "best": lambda status: "" if status.best is None else f"{status.best.accuracy:.2%} at {status.best.step:,}",
    "saved": lambda status: "" if status.saved is None else f"{status.saved:,}",
    "logged": lambda status: "" if status.time is None else f"{duration(max(0.0, time.time() - status.time))} ago",
    "starts": lambda status: f"{status.starts:,}",
    "goodput": lambda status: "" if status.goodput_ratio is None else f"{status.goodput_ratio:.0%}",
}


@faults_in_one_line("status", (ValueError, OSError))
def main() -> int:
    """Print the table, and whose command trains each run or was killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN", help="folder of a run, or of several")
    args = parser.parse_args()
    found, faults = [], []
    for folder in args.folders:
        runs = runs_in(folder)
        if not runs:
            faults.append(f"{folder}: got {'no run in it' if folder.is_dir() else 'no folder'}, wanted runs")
        for run in runs:
            try:
                found.append(status_of(run))
            except (ValueError, OSError) as error:
                faults.append(one_line(error))
    if found:
        print(table(found))
    for status in found:
        if status.holder:
            print(f"{status.run}: {status.state}: {status.holder}")
    for fault in faults:
        tell(f"status: {fault}")
    return EXIT_REFUSED if faults else 0


def number_in(status: Status, name: str, form: str) -> str:
    """A number of the newest record; empty if there is none, as of a loss that is not finite."""
    value = status.record.get(name)
    return "" if value is None else format(value, form)


def table(found: Sequence[Status]) -> str:
    """The columns that say something of any run, aligned."""
    columns = [[name, *map(text_of, found)] for name, text_of in COLUMNS.items()]
    columns = [column for column in columns if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    rows = zip(*columns, strict=True)
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


if __name__ == "__main__":
    exit_with(main)
