"""What margins have in common for which each class is a classification of its own, with one bias for all."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch.nn import functional as F

from pipeline.head.margins.margin import ScaledMargin, Target


class BinaryMargin(ScaledMargin):
    """A loss w₊ softplus(-z_y) + w₋ Σ_{j≠y} softplus(z_j), without softmax: no class's loss depends on another's.

    z_y is `target_logit`, z_j that of `features` and `warp` plus a bias b, one number for all classes, which is learned
    as the rows are: by their optimizer, from `initial_bias` on. `target_logit` finds it in ``state["bias"]``.
    """

    @property
    @abstractmethod
    def weights(self) -> tuple[float, float]:
        """w₊ and w₋."""

    def loss_of_guessing(self, classes: int) -> float:
        """The loss of cosines of 0, with the bias as it is at first."""
        bias = torch.tensor(self.initial_bias(classes))
        apart = Target(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
        target = self.target_logit(apart, None, {"bias": bias})
        other = bias if self.warp is None else self.warp.scale * self.warp.value(torch.zeros(1)) + bias
        of_target, of_other = self.weights
        return float(of_target * F.softplus(-target) + of_other * (classes - 1) * F.softplus(other))

    @abstractmethod
    def initial_bias(self, classes: float) -> float:
        """b before the first step, if so many classes take part in one."""
