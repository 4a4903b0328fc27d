"""The report of a run, from what lies in its folder; nothing is trained or evaluated again."""

import argparse
import sys
from pathlib import Path

from pipeline.evaluation.report import write_report


def main() -> int:
    """Render RUN/report.html; a fault is one line and exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run that stages/evaluate.py has evaluated")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write (default RUN/report.html)")
    args = parser.parse_args()
    try:
        print(write_report(args.run, args.out))
    except (ValueError, OSError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
