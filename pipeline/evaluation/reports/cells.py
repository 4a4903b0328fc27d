"""What several tables write in a cell."""

from __future__ import annotations

from pipeline.evaluation.scoring.estimates import Estimate

NONE = "–"


def points(gain: Estimate | None) -> str:
    """A difference in percentage points with its interval; a dash if there is none."""
    if gain is None:
        return NONE
    return f"{100 * gain.mean:+.2f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
