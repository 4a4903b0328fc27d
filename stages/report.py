"""The report of a run, or of several side by side, from what lies in their folders; nothing is evaluated again."""

import argparse
import sys
from pathlib import Path

from cluster.stop import exit_with
from pipeline.evaluation.reports.report import write_report


def main() -> int:
    """Render the page; a fault is one line and exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="+", metavar="RUN", help="folder that stages/evaluate.py has evaluated")
    parser.add_argument("--out", type=Path, metavar="FILE", help="page to write (default: report.html of the last RUN)")
    args = parser.parse_args()
    try:
        print(write_report(args.run, args.out or args.run[-1] / "report.html"))
    except (ValueError, OSError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    exit_with(main)
