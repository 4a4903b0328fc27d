"""The classifier split over ranks: gather embeddings, score own rows, one softmax across all of them.

Collectives of a step, in order, on the head's group: all-gather embeddings [B, D] and labels [B]; all-reduce max
[G]; all-reduce sum [3, G]. Backward: reduce-scatter embedding gradients [G, D]. Nothing of size S or C travels.

The gradient law. The loss is the mean over the global batch, computed alike on every rank. A row's gradient is
complete on the rank that owns it and is never averaged. An embedding's gradient is the sum over ranks of what their
rows contribute (the reduce-scatter), hence complete too. DeepSpeed then *averages* the backbone's gradient over
ranks, where the sum is wanted: `pipeline.training.engine` multiplies by N, once, there and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from cluster.collectives import Group, gather_rows, max_over_ranks, num_ranks, rank_in, sum_over_ranks
from cluster.topology import split_range
from pipeline.head.margins import Margin, cosine
from pipeline.head.rows import BLOCK, class_of, initial_rows, others_logsumexp


@dataclass(frozen=True)
class HeadOutput:
    """What a step's head computed, the same on every rank.

    Attributes:
        loss: scalar, mean over the global batch; an ignored sample counts as 0.
        own_cosine_G: cos θ to the own class, detached; 0 for ignored samples.
        norm_G: ‖x‖, detached.
        valid_G: which samples carry a label.
    """

    loss: torch.Tensor
    own_cosine_G: torch.Tensor
    norm_G: torch.Tensor
    valid_G: torch.Tensor


class ShardedHead(nn.Module):
    """Rows ``split_range(C, N, r)`` of a classifier of C classes, and their loss.

    Args:
        num_classes: C; need not divide by the ranks, but every rank must own at least one class.
        embedding_dim: D.
        margin: how the own class's logit differs.
        group: the ranks that share the classes; None for this process alone.
        seed: of the initial rows, which depend on (seed, class) only.
        dtype: of the products (float32 or bfloat16); rows, sums and the loss stay float32.
        block: classes whose logits are held at a time.

    Raises:
        ValueError: when there are fewer classes than ranks.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        margin: Margin,
        group: Group = None,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        block: int = BLOCK,
    ) -> None:
        super().__init__()
        ranks = num_ranks(group)
        if num_classes < ranks:
            raise ValueError(f"num_classes: got {num_classes}, wanted at least one for each of {ranks} ranks")
        self.num_classes, self.margin, self.group, self.dtype, self.block = (
            num_classes,
            margin,
            group,
            dtype,
            block,
        )
        self.classes = split_range(num_classes, ranks, rank_in(group))
        self.weight_SD = nn.Parameter(initial_rows(self.classes, embedding_dim, seed))

    def forward(self, embeddings_BD: torch.Tensor, labels_B: torch.Tensor, anneal: float = 0.0) -> HeadOutput:
        """Loss of the global batch from this rank's embeddings [B, D] and labels [B] (-1: ignored).

        `anneal` is A-Softmax's λ at this step. Collectives: see the module.
        """
        x_GD = gather_rows(embeddings_BD.to(self.weight_SD.dtype), self.group)
        labels_G = gather_rows(labels_B, self.group)
        own_G = class_of(labels_G, self.classes)
        local_G, own_rows_GD = others_logsumexp(
            x_GD,
            self.weight_SD,
            own_G,
            normalise_rows=self.margin.normalises_rows,
            dtype=self.dtype,
            block=self.block,
        )
        own_logit_G, own_cosine_G, others_G = self._combine(x_GD, own_rows_GD, own_G, local_G, anneal)
        valid_G = labels_G >= 0
        # -log softmax of the own class; logsigmoid keeps its precision where the loss is tiny or huge.
        loss_G = -F.logsigmoid(own_logit_G - others_G)
        return HeadOutput(
            loss=loss_G.masked_fill(~valid_G, 0).mean(),
            own_cosine_G=own_cosine_G.detach(),
            norm_G=x_GD.detach().norm(dim=1),
            valid_G=valid_G,
        )

    def _combine(
        self,
        x_GD: torch.Tensor,
        own_rows_GD: torch.Tensor,
        own_G: torch.Tensor,
        local_G: torch.Tensor,
        anneal: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Own logit, own cosine and log-sum-exp of the other classes, over all ranks' rows [G] each."""
        # With a single class there is no other: a floor far below any logit stands for log 0 without NaN gradients.
        floor = torch.finfo(local_G.dtype).min / 4
        local_G = local_G.clamp(min=floor)
        maximum_G = max_over_ranks(local_G, self.group)
        here_G = own_G >= 0
        # Rows of -1 are zeros, whose cosine has no gradient worth having: swap in x before, mask out after.
        own_rows_GD = torch.where(here_G[:, None], own_rows_GD, x_GD.detach())
        own_logit_G = self.margin.own_logit(x_GD, own_rows_GD, anneal).masked_fill(~here_G, 0)
        own_cosine_G = cosine(x_GD.detach(), own_rows_GD.detach()).masked_fill(~here_G, 0)
        summed = sum_over_ranks(torch.stack([own_logit_G, own_cosine_G, (local_G - maximum_G).exp()]), self.group)
        return summed[0], summed[1], summed[2].log() + maximum_G
