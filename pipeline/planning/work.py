"""What a rank sends and computes in a step."""

from __future__ import annotations

from pipeline.planning.job import FP32, Job, Network


def traffic(job: Job, network: Network) -> dict[str, int]:
    """Bytes that a rank sends in a step, with ring algorithms; nothing of it grows with C."""
    others = job.ranks - 1
    # Reduced and gathered once a step; ZeRO 2 reduces after every micro-batch; ZeRO 3 also gathers in every forward and
    # every backward pass. Two passes are as many bytes as an all-reduce.
    passes = (2, 2, 1 + job.accumulation, 3 * job.accumulation)[job.zero_stage]
    embeddings = FP32 * job.micro_batch * job.embedding_dim * others * job.accumulation
    return {
        "all-gather of embeddings and labels": embeddings + 8 * job.micro_batch * others * job.accumulation,
        "reduce-scatter of their gradients": embeddings,
        # a maximum and three sums a sample
        "all-reduces of the softmax": 2 * others * 4 * FP32 * job.head_batch * job.accumulation // job.ranks,
        "all-reduce of the network's gradient": passes * others * FP32 * network.parameters // job.ranks,
    }


def flops(job: Job, network: Network) -> dict[str, int]:
    """Floating-point operations of a rank in a step."""
    product = 2 * job.head_batch * job.rows * job.embedding_dim * job.accumulation
    return {
        # logits; logits again, because they are not kept; gradients of embeddings and of rows
        "classifier": 4 * product,
        # forward, and twice that backward
        "network": 3 * 2 * network.macs * job.micro_batch * job.accumulation,
    }
