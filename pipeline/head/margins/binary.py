"""What margins have in common for which each class is a classification of its own, with one bias for all."""

from __future__ import annotations

from abc import abstractmethod

from pipeline.head.margins.margin import ScaledMargin


class BinaryMargin(ScaledMargin):
    """A loss w₊ softplus(-z_y) + w₋ Σ_{j≠y} softplus(z_j), without softmax: no class's loss depends on another's.

    z_y is `target_logit`, z_j that of `features` and `warp` plus a bias b, one number for all classes, which is learned
    as the rows are: by their optimizer, from `initial_bias` on. `target_logit` finds it in ``state["bias"]``.
    """

    @property
    @abstractmethod
    def weights(self) -> tuple[float, float]:
        """w₊ and w₋."""

    @abstractmethod
    def initial_bias(self, classes: float) -> float:
        """b before the first step, if so many classes take part in one."""
