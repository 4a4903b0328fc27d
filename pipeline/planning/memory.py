"""Will it fit: memory of a rank at the moments of a step at which it can peak.

`memory` says what is alive in each, part by part:

- head: the loss of the split classifier, while the network's activations wait for their gradient
- backward: the network's gradients appear while its activations still stand (an upper bound: they shrink meanwhile)
- reduce: the ranks average the gradients (ZeRO 1 alone; the others do so within the backward pass)
- update: optimizer steps

DeepSpeed's part is that of 0.19.8 as `pipeline/training/engine.py` sets it up, read in its source and held to measured
peaks by `tests/unit/planning/test_measured.py`. Its buckets are as large as the largest parameter, L numbers.
"""

from __future__ import annotations

import torch

from pipeline.head.kernels import Kernel, choose
from pipeline.planning.job import BF16, FP32, GIB, Job, Network

# What no formula here sees: CUDA context, NCCL's and cuDNN's buffers, decoded batches, fragmentation. An assumption.
RESERVED_BYTES = 2 * GIB


def memory(job: Job, network: Network) -> dict[str, dict[str, int]]:
    """Bytes on the fullest rank: moment -> part -> bytes. A part that is absent takes nothing then."""
    rows = FP32 * job.rows * job.embedding_dim
    always = {"classifier rows": rows, "classifier slots": row_slot_bytes(job, job.rows)}
    always |= {"reserved (assumed)": RESERVED_BYTES} | _network_always(job, network)
    row_gradient = {} if job.fused_update else {"classifier gradient": rows}
    activations = {"activations": job.micro_batch * network.activation_bytes}
    # Autocast keeps the cast weights for the backward pass.
    weights = {"bf16 weights": BF16 * network.parameters if job.bf16 else 0}
    moments = {
        "head": activations | weights | _network_summed(job, network) | {"classifier blocks": head_block_bytes(job)},
        "backward": activations | weights | _network_backward(job, network),
        "reduce": _network_reduce(job, network),
        "update": _network_update(job, network),
    }
    return {moment: _present(always | row_gradient | parts) for moment, parts in moments.items() if parts}


def _present(parts: dict[str, int]) -> dict[str, int]:
    return {part: size for part, size in parts.items() if size}


def _share(job: Job, network: Network) -> int:
    """Numbers of the network that are this rank's under ZeRO."""
    return -(-network.parameters // job.ranks)


def _held_gradients(job: Job, network: Network) -> int:
    """Numbers of the gradients that ZeRO 1 and 2 keep: a parameter over the edge of a share is kept whole."""
    return min(network.parameters, _share(job, network) + network.largest_parameter)


def _buckets(job: Job, network: Network) -> int:
    """Bytes of DeepSpeed's buckets: under autocast there is a second one, for what is reduced in fp32.

    ZeRO 1 and 2 allocate both in fp32, ZeRO 3 one in each type.
    """
    second = 0 if not job.bf16 else FP32 if job.zero_stage < 3 else BF16
    return (FP32 + second) * network.largest_parameter if job.zero_stage else 0


def _network_always(job: Job, network: Network) -> dict[str, int]:
    share = FP32 * (_share(job, network) if job.zero_stage else network.parameters)
    if job.zero_stage < 3:
        return {
            "network parameters": FP32 * network.parameters,
            "network slots": job.slots * share,
            # ZeRO updates a copy of its share and then spreads it.
            "ZeRO's copy of its share": share if job.zero_stage else 0,
        }
    return {
        "network parameters": share,
        "network slots": job.slots * share,
        "ZeRO's copy of its share": share,
        "network gradient": share,
        "ZeRO buckets": _buckets(job, network),
    }


def _network_summed(job: Job, network: Network) -> dict[str, int]:
    """What is kept from one micro-batch to the next. (ZeRO 3 always keeps it.)"""
    if job.accumulation == 1 or job.zero_stage == 3:
        return {}
    if job.zero_stage == 2:
        return {"network gradient": FP32 * _held_gradients(job, network)}
    # ZeRO 1 keeps the buckets that it made in the first backward pass
    return {"network gradient": FP32 * network.parameters, "ZeRO buckets": _buckets(job, network)}


def _network_backward(job: Job, network: Network) -> dict[str, int]:
    largest, summing = FP32 * network.largest_parameter, job.accumulation > 1
    if job.zero_stage == 3:
        # A layer's parameters, as they came and in one piece; their gradient, and what of it is sent.
        return {"ZeRO's layer at work": largest * 5 // 2 if job.bf16 else 4 * largest}
    if job.zero_stage == 2:
        # The sum so far, and the new gradients beside it; a full bucket is copied to be sent.
        held = FP32 * _held_gradients(job, network) * (2 if summing else 1)
        copy = largest // 2 if job.bf16 else largest
        return {"network gradient": held, "ZeRO buckets": _buckets(job, network) + copy}
    # Without ZeRO each bucket that is sent replaces its gradients: the large ones go while few others are there.
    parts = {"network gradient": FP32 * network.parameters, "ZeRO buckets": _buckets(job, network)}
    if summing:  # a layer's new gradient, before it is added
        return parts | {"a layer's gradient": largest}
    # A weight's cast goes as its gradient comes.
    return parts | {"bf16 weights": 0}


def _network_reduce(job: Job, network: Network) -> dict[str, int]:
    if job.zero_stage != 1:  # the exchange is part of the backward pass
        return {}
    # The first bucket has gone, and what ZeRO keeps has been allocated whole.
    left = network.parameters - network.largest_parameter + _held_gradients(job, network)
    return {"network gradient": FP32 * left, "ZeRO buckets": _buckets(job, network)}


def _network_update(job: Job, network: Network) -> dict[str, int]:
    """The rows are updated in place. The network is not: torch's optimizers make a tensor of the size of its gradient.

    (SGD a copy to add weight decay to, Adam its denominator; on a CPU of one parameter at a time.) ZeRO updates its
    share from a flat copy besides.
    """
    share = FP32 * _share(job, network)
    if job.zero_stage == 0:
        copied = network.largest_parameter if job.device == "cpu" else network.parameters
        return {"network gradient": FP32 * network.parameters, "flat copies": FP32 * copied}
    if job.zero_stage == 3:
        return {"flat copies": 2 * share}
    return {"network gradient": FP32 * _held_gradients(job, network), "flat copies": 2 * share}


def head_block(job: Job) -> int:
    """Classes that the head holds at a time, if there are as many."""
    kernel, dtype = _kernel(job)
    return job.block or kernel.block_of(batch=job.head_batch, embedding_dim=job.embedding_dim, dtype=dtype)


def head_block_bytes(job: Job) -> int:
    """The head's memory beyond rows, their gradient and slots, as its kernel says; independent of C from a block on."""
    kernel, dtype = _kernel(job)
    return kernel.memory_bytes(
        rows=job.rows,
        batch=job.head_batch,
        embedding_dim=job.embedding_dim,
        dtype=dtype,
        block=job.block,
        margin=job.margin,
    )


def _kernel(job: Job) -> tuple[Kernel, torch.dtype]:
    dtype = torch.bfloat16 if job.bf16 else torch.float32
    return choose(job.device, dtype, job.margin), dtype


def checkpoint_bytes(job: Job, network: Network) -> int:
    """A checkpoint on the disk: rows and network with their slots, fp32."""
    rows = FP32 * job.classes * job.embedding_dim + row_slot_bytes(job, job.classes)
    return rows + network_state_bytes(job, network)


def row_slot_bytes(job: Job, rows: int) -> int:
    """What the optimizer keeps of so many rows."""
    return FP32 * rows * (job.slots * job.embedding_dim + job.row_slots)


def network_state_bytes(job: Job, network: Network) -> int:
    """The network's parameters and their slots, whole."""
    return (1 + job.slots) * FP32 * network.parameters


def head_bytes(job: Job) -> int:
    """All that the head takes on the fullest rank: rows, their slots and gradient, and a block's working memory."""
    rows = FP32 * job.rows * job.embedding_dim
    return (1 if job.fused_update else 2) * rows + row_slot_bytes(job, job.rows) + head_block_bytes(job)


def peak(job: Job, network: Network) -> tuple[str, int]:
    """The fullest moment and its bytes."""
    totals = {moment: sum(parts.values()) for moment, parts in memory(job, network).items()}
    moment = max(totals, key=totals.__getitem__)
    return moment, totals[moment]
