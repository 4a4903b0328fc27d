"""The least time that a card could take for a step: what shares of the possible are measured against.

Model FLOPs are those of the model and not of the machine: a product that is computed again counts once (Chowdhery et
al., "PaLM", appendix B). Counted as in `pipeline.planning.timing`.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.cards import Card
from pipeline.planning.job import FP32, Job, Network
from pipeline.planning.timing import model_flops


@dataclass(frozen=True)
class Floors:
    """Seconds of a step on a card that does nothing but reach its peaks.

    Attributes:
        step: the model's FLOPs, those of the network and of the head each in their type.
        head: of the head's forward and backward pass: its FLOPs, or the bytes that it cannot avoid if they take longer.
    """

    step: float
    head: float


def floors(job: Job, network: Network, card: Card) -> Floors:
    """The floors of one rank; its collectives count as nothing."""
    work = model_flops(job, network)
    head = work["classifier"] / (card.bf16 if job.bf16 else card.fp32)
    backbone = work["network"] / (card.bf16 if job.bf16 else card.tf32)
    return Floors(backbone + head, max(head, head_pass_bytes(job) / card.bytes_per_second))


def head_pass_bytes(job: Job) -> int:
    """Bytes that the head's passes over its rows read and write at least, in a step.

    The rows are read in the forward and in the backward pass, which writes their gradient or, if it updates them, rows
    and slots, having read the slots.
    """
    passes = 3 + 2 * job.slots if job.fused_update else 3 * job.accumulation
    return FP32 * passes * job.rows * job.embedding_dim
