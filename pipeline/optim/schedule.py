"""The learning rate as a pure function of the step, so that it needs no checkpoint."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence


def learning_rate(
    step: int,
    base: float,
    *,
    steps: int,
    warmup_steps: int = 0,
    milestones: Sequence[int] = (),
    decay: float = 0.1,
    power: float | None = None,
    cosine: bool = False,
) -> float:
    """The rate of `step` (from 0) of `steps`: linear warm-up to `base`, then down, in steps or along a curve.

    Step t of a warm-up of W has base · (t + 1) / W, so that the first step already learns. After it the rate is times
    `decay` at each milestone reached: Caffe's "multistep" policy, the authors' solver with (16000, 24000). With a
    `power` p it is base · (1 - (t - W) / (T - W))^p instead, as `arcface_torch` trains (p = 1; earlier 2); with
    `cosine`, base · (1 + cos(π (t - W) / (T - W))) / 2 (Loshchilov and Hutter, ICLR 2017, eq. 5, without restarts).
    Beyond the last step the curves stay at their end, 0.
    """
    if step < warmup_steps:
        return base * decay ** bisect_right(milestones, step) * (step + 1) / warmup_steps
    done = min(1.0, (step - warmup_steps) / max(steps - warmup_steps, 1))  # a trainer around the head may go on
    if power is not None:
        return base * (1 - done) ** power
    if cosine:
        return base * (1 + math.cos(math.pi * done)) / 2
    return base * decay ** bisect_right(milestones, step)
