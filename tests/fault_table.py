"""The table of faults in docs/faults.md: tests record what they measured, `python -m tests.fault_table` writes it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "runs" / "faults"

HEAD = """# Faults

What a run survives, and what it costs. Every row was measured by a test, on a small network of two or three ranks that
share two cores: the seconds are mostly those of processes that start. A checkpoint was saved every five steps. Of a
start on two hosts "until told" is from a host's coming to the meeting to its message, on the slower host: that is what
`timeout_seconds` bounds. In brackets is what the command took besides: before, ssh, DeepSpeed's launcher and imports;
after, processes that end and the launcher, which looks once a second. Of a stop it is until every process had ended.
Written by `python -m tests.fault_table` from what the tests recorded in `runs/faults/`.

| fault | what was done | steps lost | seconds until told | seconds until the next step | outcome |
| --- | --- | --- | --- | --- | --- |
"""


@dataclass(frozen=True)
class Row:
    """One fault as it was survived; None where a column has no meaning, such as the next step of a refused start."""

    fault: str
    done: str
    steps_lost: int | None
    seconds_until_told: float | None
    seconds_until_next_step: float | None
    outcome: str


def record(row: Row) -> None:
    """Leave a row for the table. One file a fault: tests may run side by side."""
    RECORDS.mkdir(parents=True, exist_ok=True)
    name = "".join(letter if letter.isalnum() else "-" for letter in row.fault.lower())
    (RECORDS / f"{name}.json").write_text(json.dumps(asdict(row)))


def main() -> None:
    """Write docs/faults.md from the records."""
    rows = [Row(**json.loads(path.read_text())) for path in sorted(RECORDS.glob("*.json"))]
    lines = []
    for row in rows:
        lost = "–" if row.steps_lost is None else str(row.steps_lost)
        told, again = (
            "–" if s is None else "in the step" if s == 0 else f"{s:.1f}"
            for s in (row.seconds_until_told, row.seconds_until_next_step)
        )
        lines.append(f"| {row.fault} | {row.done} | {lost} | {told} | {again} | {row.outcome} |\n")
    (ROOT / "docs").mkdir(exist_ok=True)
    (ROOT / "docs" / "faults.md").write_text(HEAD + "".join(lines))


if __name__ == "__main__":
    main()
