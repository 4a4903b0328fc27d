"""The controls of the SphereFace paper: softmax without a margin, with rows as they are and with rows of length 1."""

from __future__ import annotations

import torch

from pipeline.head.margins.margin import MARGINS, Margin, State, Target


@MARGINS.add("softmax")
class Softmax(Margin):
    """x·w_y, without bias."""

    name: str = "softmax"

    @property
    def normalises_rows(self) -> bool:
        """Rows enter as they are."""
        return False

    def target_logit(self, target: Target, lambda_: float | None, state: State) -> torch.Tensor:
        """x·w [G]."""
        return target.product_G


@MARGINS.add("modified_softmax")
class ModifiedSoftmax(Margin):
    """‖x‖ cos θ: Liu et al., CVPR 2017, eq. 4."""

    name: str = "modified_softmax"

    def target_logit(self, target: Target, lambda_: float | None, state: State) -> torch.Tensor:
        """‖x‖ cos θ [G]."""
        return target.embedding_norm_G * target.cosine_G
