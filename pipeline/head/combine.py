"""From what each rank's rows say of the group's batch to the loss of every sample, alike on every rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from cluster.ranks.collectives import Group, max_over_ranks, sum_over_ranks


def softmax_losses(
    logsumexp_G: torch.Tensor, of_targets: Sequence[torch.Tensor], here_G: torch.Tensor, group: Group
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses -log softmax of the target class, penalties included, and target cosines [G].

    All-reduce max [G], then all-reduce sum [3, G], or [4, G] with a penalty: the maximum must be known before
    exponentials can be summed, and everything else waits to travel with them.

    Args:
        logsumexp_G: over the non-target classes here.
        of_targets: target logits, target cosines and, if there is one, penalties [G] each.
        here_G: whose target class is here; what `of_targets` has of others is discarded.
        group: the ranks that share the classes.
    """
    # With a single class there is no other: a floor far below any logit stands for log 0 without NaN gradients.
    logsumexp_G = logsumexp_G.clamp(min=torch.finfo(logsumexp_G.dtype).min / 4)
    maximum_G = max_over_ranks(logsumexp_G, group)
    total_G, target_logit_G, cosine_G, *penalties = _sums((logsumexp_G - maximum_G).exp(), of_targets, here_G, group)
    # logsigmoid keeps its precision if the loss is tiny or huge
    loss_G = -F.logsigmoid(target_logit_G - (total_G.log() + maximum_G))
    return sum(penalties, loss_G), cosine_G


def binary_losses(
    softplus_G: torch.Tensor,
    of_targets: Sequence[torch.Tensor],
    here_G: torch.Tensor,
    group: Group,
    weights: tuple[float, float],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses w₊ softplus(-target logit) + w₋ (their sum over the other classes), and target cosines [G].

    One all-reduce sum, as above; `softplus_G` is the sum over the non-target classes here, `weights` w₊ and w₋.
    """
    total_G, target_logit_G, cosine_G, *penalties = _sums(softplus_G, of_targets, here_G, group)
    loss_G = weights[0] * F.softplus(-target_logit_G) + weights[1] * total_G
    return sum(penalties, loss_G), cosine_G


def _sums(
    local_G: torch.Tensor, of_targets: Sequence[torch.Tensor], here_G: torch.Tensor, group: Group
) -> tuple[torch.Tensor, ...]:
    # One rank has a sample's target row and every other rank adds zero: the sum is its value to the bit.
    here = [values_G.masked_fill(~here_G, 0) for values_G in of_targets]
    return sum_over_ranks(torch.stack([local_G, *here]), group).unbind()
