"""The runbooks of the alerts, parsed from docs/runbooks.md, which the wheel has beside this file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("runbooks.md")

# A heading, what the alert means, what the query shows, the query, and numbered steps.
_SECTION = re.compile(
    r"^## (\w+)\n\n(.+?)\n\n(.+?)\n\n```promql\n(.+?)\n```\n\n(1\. .+?)\n*\Z", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Runbook:
    """What to do about an alert.

    Args:
        meaning: what has happened.
        shows: how to read the query's result.
        query: PromQL that locates the fault; ``$job`` stands for the run's name.
        steps: what to do, in order.
    """

    meaning: str
    shows: str
    query: str
    steps: tuple[str, ...]


def read_runbooks(file: Path = FILE) -> dict[str, Runbook]:
    """Runbooks by the name of their alert.

    Raises:
        ValueError: for a section that does not have this form, with its name.
    """
    _, *sections = re.split(r"^(?=## )", file.read_text(), flags=re.MULTILINE)
    return dict(map(_read_section, sections))


def _read_section(text: str) -> tuple[str, Runbook]:
    found = _SECTION.match(text)
    if not found:
        title = text.partition("\n")[0]
        raise ValueError(f"runbooks: got {title!r}, wanted a meaning, what the query shows, a promql block and steps")
    name, meaning, shows, query, steps = found.groups()
    listed = re.split(r"^\d+\. ", steps, flags=re.MULTILINE)[1:]
    return name, Runbook(_one_line(meaning), _one_line(shows), query, tuple(map(_one_line, listed)))


def _one_line(text: str) -> str:
    return " ".join(text.split())
