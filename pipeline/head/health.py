"""Does the margin learn? Target angles of a batch, and a warning in words when they stop moving.

Users' first complaint about A-Softmax is that it stalls without a word: with a small λ and a large m, ψ is so low that
every other class wins, and its slope at θ ≈ π/2 turns no sample towards its class. The loss then stays near or above
ln C, what guessing costs, and the angle to the own class near π/2.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import torch

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class TargetAngles:
    """The angle θ to the own class over a batch.

    Attributes:
        quantiles: θ in radians at `QUANTILES`.
        beyond_pi: share of samples with mθ > π, where the own logit is on a later branch of ψ.
    """

    quantiles: tuple[float, ...]
    beyond_pi: float

    @property
    def median(self) -> float:
        """The middle angle, in radians."""
        return self.quantiles[QUANTILES.index(0.5)]


def target_angles(own_cosine: torch.Tensor, m: float) -> TargetAngles:
    """The angles' distribution from cos θ of the samples that carry a label; NaN where there is none."""
    if not len(own_cosine):
        return TargetAngles((math.nan,) * len(QUANTILES), math.nan)
    theta = torch.arccos(own_cosine.double().clamp(-1, 1))
    at = torch.quantile(theta, torch.tensor(QUANTILES, dtype=theta.dtype, device=theta.device))
    return TargetAngles(tuple(at.tolist()), (m * theta > math.pi).double().mean().item())


class StallWatch:
    """Warns when training runs but nothing turns: the same words on every rank, at most once in `steps` steps.

    A stall is: over `steps` steps the median angle fell by less than 0.02 radians while the loss stayed above 0.9 of
    ln C. A run that has converged does not turn either, but its loss is small.

    Args:
        num_classes: C.
        steps: how long nothing may move.
    """

    _MOVED = 0.02
    _OF_CHANCE = 0.9

    def __init__(self, num_classes: int, steps: int) -> None:
        self._chance = math.log(num_classes)
        self._recent: deque[tuple[float, float]] = deque(maxlen=steps)  # median angle, loss
        self._floor_reached: int | None = None

    def look(self, step: int, loss: float, median: float, anneal: float, floor: float) -> str | None:
        """A warning after `step` (from 0), or None. `anneal` is λ now, `floor` the value that it falls to."""
        if not (math.isfinite(loss) and math.isfinite(median)):
            return None
        if anneal <= floor and self._floor_reached is None:
            self._floor_reached = step
        self._recent.append((median, loss))
        if len(self._recent) < (self._recent.maxlen or 0):
            return None
        quarter = max(1, len(self._recent) // 4)
        early, late = list(self._recent)[:quarter], list(self._recent)[-quarter:]
        before, now = (sum(angle for angle, _ in part) / quarter for part in (early, late))
        mean_loss = sum(loss for _, loss in late) / quarter
        if before - now >= self._MOVED or mean_loss < self._OF_CHANCE * self._chance:
            return None
        steps = len(self._recent)
        self._recent.clear()
        fell = self._floor_reached
        about_lambda = f"λ is {anneal:g}" if fell is None else f"λ fell to {floor:g} at step {fell}"
        return (
            f"angle to own class has not moved in {steps} steps (median {before:.3f} → {now:.3f} rad, loss "
            f"{mean_loss:.3f}, chance is ln C = {self._chance:.3f}); {about_lambda}: raise head.lambda_max, start from "
            "head.m 1 (head.phases), or raise optimizer.learning_rate"
        )
