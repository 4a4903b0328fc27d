"""Gradient clipping by global norm (Pascanu et al., "On the difficulty of training recurrent neural networks", 2013).

The norm is the one that all ranks agree on in every step anyway: clipping costs no collective and no wait, and is the
same for every ZeRO stage. DeepSpeed's own ``gradient_clipping`` would compute another, and knows nothing of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

# As torch.nn.utils.clip_grad_norm_ has it.
_EPSILON = 1e-6


def coefficient(square: torch.Tensor, most: float) -> torch.Tensor:
    """What a gradient is multiplied by for its norm to be at most `most`; exactly 1 if it is.

    Args:
        square: of the norm, scalar.
        most: the largest norm allowed.
    """
    return (most / (square.sqrt() + _EPSILON)).clamp(max=1)


def clip_(gradients: Sequence[torch.Tensor], square: torch.Tensor, most: float) -> None:
    """Scale `gradients` in place so that the norm of the whole, of which they are this rank's part, is at most `most`.

    Args:
        gradients: float32.
        square: of the norm of the whole, scalar on their device.
        most: the largest norm allowed.
    """
    if gradients:
        torch._foreach_mul_(list(gradients), coefficient(square, most).to(gradients[0].dtype))
