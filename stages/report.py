"""The report of a run, or of several side by side, from what lies in their folders; nothing is evaluated again."""

try:
    import cluster.begin  # noqa: F401 - before all that takes long to import
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: {missing}: make install, then source .venv/bin/activate") from None

import argparse
from pathlib import Path

from cluster.stop import exit_with, faults_in_one_line
from pipeline.evaluation.reports.report import write_report
from pipeline.run.folder import RunFolder


@faults_in_one_line("report")
def main() -> int:
    """Render the page; a fault is one line (65, or 74 for the disk)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="+", metavar="RUN", help="folder that stages/evaluate.py has evaluated")
    parser.add_argument("--out", type=Path, metavar="FILE", help="page to write (default: report.html of the last RUN)")
    args = parser.parse_args()
    print(write_report(args.run, args.out or RunFolder(args.run[-1]).report))
    return 0


if __name__ == "__main__":
    exit_with(main)
