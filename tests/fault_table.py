"""The table in docs/faults.md: tests record what they measured, and `python -m tests.fault_table` writes it."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.machine import machine

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "runs" / "faults"

HEAD = """# Faults

The faults that a run survives, and their cost. Every row was measured by a test, with a small network on two or three
ranks that share two cores. A checkpoint was saved every five steps. Seconds count from the fault itself. "Until
reported" ends with the fault's first message, "until the next step" with the first step that a supervisor's next start
has done. For a failed start on two hosts it begins when a host reaches the rendezvous, and is that of the slower host:
`timeout_seconds` bounds it. In brackets is the rest of the command's time: before, ssh, DeepSpeed's launcher and
imports; after, processes that end and the launcher, which polls once a second. For a stop it is the time until every
process had ended.
Written by `python -m tests.fault_table` from what the tests recorded in `runs/faults/`, one after another:
{measured}.

| fault | what was done | steps lost | seconds until reported | seconds until the next step | outcome |
| --- | --- | --- | --- | --- | --- |
"""

RESTARTS = """
## A restart by part

From the fault to the first step after it, with `--wait-seconds` 0.5. The ranks that are left end, by their watchdog,
or are killed after `--end-seconds` (2, the default); the supervisor waits and takes the hosts that are there; then
rank 0's own parts. Imports are done by the host's agent beforehand. After the loss of rank 0's host the meeting has
2.5 s in which an earlier holder of the run's folder would notice that it was taken over.

| fault | seconds by part |
| --- | --- |
"""


@dataclass(frozen=True)
class Row:
    """One fault and how a run survived it; None if a column does not apply, as the next step of a refused start."""

    fault: str
    done: str
    steps_lost: int | None
    seconds_until_reported: float | None
    seconds_until_next_step: float | None
    outcome: str
    parts: dict[str, float] = field(default_factory=dict)
    """Seconds of a restart after the report, in order."""


def record(row: Row) -> None:
    """Write a row for the table. One file a fault: tests may run side by side."""
    RECORDS.mkdir(parents=True, exist_ok=True)
    name = "".join(letter if letter.isalnum() else "-" for letter in row.fault.lower())
    measured = f"{time.strftime('%Y-%m-%d')}, {machine()}"
    (RECORDS / f"{name}.json").write_text(json.dumps({"measured": measured, "row": asdict(row)}))


def main() -> None:
    """Write docs/faults.md from the records."""
    records = [json.loads(path.read_text()) for path in sorted(RECORDS.glob("*.json"))]
    rows = [Row(**one["row"]) for one in records]
    measured = "; ".join(sorted({one["measured"] for one in records}))
    lines = []
    for row in rows:
        lost = "–" if row.steps_lost is None else str(row.steps_lost)
        reported, next_step = (
            "–" if s is None else "in the step" if s == 0 else f"{s:.1f}"
            for s in (row.seconds_until_reported, row.seconds_until_next_step)
        )
        lines.append(f"| {row.fault} | {row.done} | {lost} | {reported} | {next_step} | {row.outcome} |\n")
    restarts = [
        f"| {row.fault} | reported {row.seconds_until_reported:.1f}, "
        f"{', '.join(f'{part} {seconds:.1f}' for part, seconds in row.parts.items() if seconds >= 0.05)} |\n"
        for row in rows
        if row.parts
    ]
    (ROOT / "docs").mkdir(exist_ok=True)
    table = HEAD.format(measured=measured) + "".join(lines) + RESTARTS + "".join(restarts)
    (ROOT / "docs" / "faults.md").write_text(table)


if __name__ == "__main__":
    main()
