"""The learning rate as a pure function of the step, so that it needs no checkpoint."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence


def learning_rate(
    step: int, base: float, *, warmup_steps: int = 0, milestones: Sequence[int] = (), decay: float = 0.1
) -> float:
    """The rate of `step` (from 0): linear warm-up to `base`, then times `decay` at each milestone reached.

    Step t of a warm-up of W has base · (t + 1) / W, so that the first step already learns. Caffe's "multistep"
    policy (the authors' solver) is ``milestones=(16000, 24000)`` with no warm-up.
    """
    rate = base * decay ** bisect_right(milestones, step)
    return rate * min(1.0, (step + 1) / warmup_steps) if warmup_steps else rate
