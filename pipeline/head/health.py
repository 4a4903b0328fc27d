"""Does the margin learn? Target angles of a batch, and a warning when they stop falling.

Users' first complaint about A-Softmax is that it stalls without a message: with a small λ and a large m, ψ is so low
that every non-target class wins, and its slope at θ ≈ π/2 turns no sample towards its target class. The loss then stays
near or above ln C, what guessing costs, and the target angle near π/2.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class TargetAngles:
    """The target angle θ over a batch.

    Attributes:
        quantiles: θ in radians at `QUANTILES`.
        beyond_pi: share of samples whose margin's angle (mθ for A-Softmax) is beyond π: their target logit is on a
            later branch of ψ.
    """

    quantiles: tuple[float, ...]
    beyond_pi: float

    @property
    def median(self) -> float:
        """The middle angle, in radians."""
        return self.quantiles[QUANTILES.index(0.5)]


def target_angles(target_cosine: torch.Tensor, margin_angle: Callable[[torch.Tensor], torch.Tensor]) -> TargetAngles:
    """The angles' distribution from cos θ of the samples that carry a label; NaN if there is none.

    `margin_angle` is `Margin.margin_angle`.
    """
    if not len(target_cosine):
        return TargetAngles((math.nan,) * len(QUANTILES), math.nan)
    theta = torch.arccos(target_cosine.double().clamp(-1, 1))
    at = torch.quantile(theta, torch.tensor(QUANTILES, dtype=theta.dtype, device=theta.device))
    return TargetAngles(tuple(at.tolist()), (margin_angle(theta) > math.pi).double().mean().item())


class StallWatch:
    """Warns when training runs but target angles do not fall: the same on every rank, at most once in `steps` steps.

    A stall is: over `steps` steps the median target angle fell by less than 0.02 radians while the loss stayed above
    0.9 of ln C. The angles of a run that has converged do not fall either, but its loss is small.

    Args:
        num_classes: C.
        steps: how long the angles may stay.
    """

    _MOVED = 0.02
    _OF_CHANCE = 0.9

    def __init__(self, num_classes: int, steps: int) -> None:
        self._chance = math.log(num_classes)
        self._recent: deque[tuple[float, float]] = deque(maxlen=steps)  # median angle, loss
        self._floor_reached: int | None = None

    def look(self, step: int, loss: float, median: float, lambda_: float | None, floor: float | None) -> str | None:
        """A warning after `step` (from 0), or None.

        `lambda_` is λ now and `floor` the value that it falls to; both None for a margin without λ.
        """
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
            f"{mean_loss:.3f}, chance is ln C = {self._chance:.3f}); {self._advice(lambda_, floor)}"
        )

    def _advice(self, lambda_: float | None, floor: float | None) -> str:
        if lambda_ is None or floor is None:
            return "start from a smaller margin (head.phases), or raise optimizer.learning_rate"
        fell = self._floor_reached
        about_lambda = f"λ is {lambda_:g}" if fell is None else f"λ fell to {floor:g} at step {fell}"
        return (
            f"{about_lambda}: raise head.margin.lambda_max, start from head.margin.m 1 (head.phases), or raise "
            "optimizer.learning_rate"
        )
