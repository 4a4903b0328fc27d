"""Does the margin learn? Target angles of a batch, and a warning when they stop falling.

Users' first complaint about A-Softmax is that it stalls without a message: with a small λ and a large m, ψ is so low
that every non-target class wins, and its slope at θ ≈ π/2 turns no sample towards its target class. The loss then stays
near or above ln C, what guessing costs, and the target angle near π/2.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import torch

from pipeline.head.margins import Margin

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class TargetAngles:
    """The target angle θ over a batch.

    Attributes:
        quantiles: θ in radians at `QUANTILES`.
        beyond_pi: share of samples whose margin's angle (mθ for A-Softmax) is beyond π: their target logit is on an
            extension of the cosine. None for a margin whose angle is θ.
    """

    quantiles: tuple[float, ...]
    beyond_pi: float | None

    @property
    def median(self) -> float:
        """The middle angle, in radians."""
        return self.quantiles[QUANTILES.index(0.5)]


def target_angles(target_cosine: torch.Tensor, margin: Margin) -> TargetAngles:
    """The angles' distribution from cos θ of the samples that carry a label; NaN if there is none."""
    if not len(target_cosine):
        return TargetAngles((math.nan,) * len(QUANTILES), math.nan if margin.changes_angle else None)
    theta = torch.arccos(target_cosine.double().clamp(-1, 1))
    at = torch.quantile(theta, torch.tensor(QUANTILES, dtype=theta.dtype, device=theta.device))
    beyond = (margin.margin_angle(theta) > math.pi).double().mean().item() if margin.changes_angle else None
    return TargetAngles(tuple(at.tolist()), beyond)


class StallWatch:
    """Warns when training runs but target angles do not fall: the same on every rank, at most once in `steps` steps.

    A stall is: over `steps` steps the median target angle fell by less than 0.02 radians while the loss stayed above
    0.9 of what guessing costs. The angles of a run that has converged do not fall either, but its loss is small.

    Args:
        chance: the loss of guessing: ln C for a softmax.
        steps: how long the angles may stay.
    """

    _MOVED = 0.02
    _OF_CHANCE = 0.9

    def __init__(self, chance: float, steps: int) -> None:
        self._chance = chance
        self._recent: deque[tuple[float, float]] = deque(maxlen=steps)  # median angle, loss
        self._floor_reached: int | None = None

    def look(self, step: int, loss: float, median: float, lambda_: float | None, margin: Margin) -> str | None:
        """A warning after `step` (from 0), or None. `lambda_` is λ now; None for a margin without one."""
        floor = margin.lambda_floor
        if not (math.isfinite(loss) and math.isfinite(median)):
            return None
        if lambda_ is not None and floor is not None and lambda_ <= floor and self._floor_reached is None:
            self._floor_reached = step
        self._recent.append((median, loss))
        if len(self._recent) < (self._recent.maxlen or 0):
            return None
        quarter = max(1, len(self._recent) // 4)
        early, late = list(self._recent)[:quarter], list(self._recent)[-quarter:]
        before = sum(angle for angle, _ in early) / quarter
        now = sum(angle for angle, _ in late) / quarter
        mean_loss = sum(loss for _, loss in late) / quarter
        if before - now >= self._MOVED or mean_loss < self._OF_CHANCE * self._chance:
            return None
        steps = len(self._recent)
        self._recent.clear()
        return (
            f"the target angle has not fallen in {steps} steps (median {before:.3f} → {now:.3f} rad, loss "
            f"{mean_loss:.3f}, chance is {self._chance:.3f}); {self._advice(lambda_, margin)}"
        )

    def _advice(self, lambda_: float | None, margin: Margin) -> str:
        if not margin.is_margin:
            return "raise optimizer.learning_rate"
        if lambda_ is None:
            return "start from a smaller margin (head.phases), or raise optimizer.learning_rate"
        fell = self._floor_reached
        about_lambda = f"λ is {lambda_:g}" if fell is None else f"λ fell to {margin.lambda_floor:g} at step {fell}"
        return (
            f"{about_lambda}: raise head.margin.lambda_max, start from head.margin.m 1 (head.phases), or raise "
            "optimizer.learning_rate"
        )
