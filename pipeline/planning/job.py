"""What is planned: a step's shape and a network's numbers.

Letters: C classes, S = ⌈C/N⌉ of them on a rank, N ranks, D embedding, G samples in one call of the head, P parameters.
Parameters, the optimizer's slots, gradients and the head's sums are fp32, 4 bytes a number.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.ranks.topology import split_range
from pipeline.head.margins import Margin
from pipeline.head.margins.a_softmax import ASoftmax

FP32, BF16 = 4, 2
GIB = 2**30


@dataclass(frozen=True)
class Network:
    """What is replicated on every rank.

    Args:
        parameters: P.
        activation_bytes: kept for a sample from forward to backward.
        macs: multiply-adds of a sample's forward pass.
        largest_parameter: numbers of its largest tensor, which is the size of DeepSpeed's buckets.
        norm_reduces, norm_bytes: a micro-batch's all-reduces of batch norms' statistics, if these are of all ranks, and
            their bytes.
    """

    parameters: int
    activation_bytes: int
    macs: int
    largest_parameter: int = 0
    norm_reduces: int = 0
    norm_bytes: int = 0


@dataclass(frozen=True)
class Job:
    """A step's shape.

    Args:
        classes, embedding_dim: C and D of the classifier, split over the ranks.
        global_batch: samples a step, over ranks and accumulation.
        ranks: N, one GPU each.
        block: classes whose logits the head holds at a time; None: as many as suit its kernel.
        accumulation: micro-batches a step.
        zero_stage: 1 splits the slots of the network over the ranks, 2 its gradients too, 3 its parameters as well.
        bf16: products in bfloat16.
        fused_update: rows are updated block by block, so their gradient is never held.
        slots: numbers that the optimizer keeps for each number of a parameter: 1, a momentum, for SGD.
        exchange: bytes of a number of the network's gradient on its way between ranks.
        row_slots: numbers that it keeps besides for each row of the classifier: 1 for a count of updates.
        ranks_per_host: on each host; the last may have fewer.
        device: its type, which decides the head's kernel with the margin.
        margin: of the classifier.

    Raises:
        ValueError: for an impossible combination, naming the field.
    """

    classes: int
    embedding_dim: int
    global_batch: int
    ranks: int
    block: int | None = None
    accumulation: int = 1
    zero_stage: int = 0
    bf16: bool = True
    fused_update: bool = False
    slots: int = 1
    row_slots: int = 0
    exchange: int = FP32
    ranks_per_host: int = 8
    device: str = "cuda"
    margin: Margin = ASoftmax()

    def __post_init__(self) -> None:
        for name in ("embedding_dim", "global_batch", "ranks", "accumulation", "ranks_per_host"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, wanted at least 1")
        if self.block is not None and self.block < 1:
            raise ValueError(f"block: got {self.block}, wanted at least 1")
        if self.classes < self.ranks:
            raise ValueError(f"classes: got {self.classes}, wanted at least one for each of {self.ranks} ranks")
        parts = self.ranks * self.accumulation
        if self.global_batch % parts:
            raise ValueError(
                f"global_batch: got {self.global_batch}, wanted a multiple of {parts} (ranks × accumulation)"
            )
        for name in ("slots", "row_slots"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, wanted at least 0")
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"zero_stage: got {self.zero_stage}, wanted 0, 1, 2 or 3")
        if self.fused_update and self.accumulation > 1:
            raise ValueError(
                f"fused_update: got accumulation {self.accumulation}, wanted 1: sums need a gradient to sum in"
            )

    @property
    def rows(self) -> int:
        """S, the most classes that one rank holds."""
        return len(split_range(self.classes, self.ranks, 0))

    @property
    def hosts(self) -> int:
        """Hosts that take part."""
        return -(-self.ranks // self.ranks_per_host)

    @property
    def rank_batch(self) -> int:
        """Samples of one rank in a step."""
        return self.global_batch // self.ranks

    @property
    def head_batch(self) -> int:
        """G, samples in one call of the head."""
        return self.global_batch // self.accumulation

    @property
    def micro_batch(self) -> int:
        """Samples of one rank in one call of the network."""
        return self.head_batch // self.ranks
