"""Will it fit, and what will travel: memory, traffic and FLOPs of a step, before a cluster is rented.

Plain arithmetic on plain numbers. A step has three moments at which memory can peak; `memory` says what is alive in
each, part by part:

- head: the loss of the split classifier, while the network's activations wait for their gradient
- backward: the network's gradients appear while its activations still stand (an upper bound: they shrink meanwhile)
- update: optimizer steps

Letters: C classes, S = ⌈C/N⌉ of them on a rank, N ranks, D embedding, G samples in one call of the head, P parameters.
Parameters, momenta, gradients and the head's sums are fp32, 4 bytes a number.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cluster.topology import split_range

FP32, BF16 = 4, 2
GIB = 2**30

# What no formula here sees: CUDA context, NCCL's and cuDNN's buffers, decoded batches, fragmentation. An assumption.
RESERVED_BYTES = 2 * GIB

# DeepSpeed's default `reduce_bucket_size`: numbers in the buffer that ZeRO 1 and 2 allocate in every backward pass.


@dataclass(frozen=True)
class Network:
    """What is replicated on every rank.

    Args:
        parameters: P.
        activation_bytes: kept for a sample from forward to backward.
        macs: multiply-adds of a sample's forward pass.
    """

    parameters: int
    activation_bytes: int
    macs: int


@dataclass(frozen=True)
class Job:
    """A step's shape.

    Args:
        classes, embedding_dim: C and D of the classifier, split over the ranks.
        global_batch: samples a step, over ranks and accumulation.
        ranks: N, one GPU each.
        block: classes whose logits the head holds at a time.
        accumulation: micro-batches a step.
        zero_stage: 1 splits the network's momenta over the ranks, 2 its gradients too.
        bf16: products in bfloat16.
        fused_update: rows are updated block by block, so their gradient is never held.

    Raises:
        ValueError: for an impossible combination, naming the field.
    """

    classes: int
    embedding_dim: int
    global_batch: int
    ranks: int
    block: int
    accumulation: int = 1
    zero_stage: int = 0
    bf16: bool = True
    fused_update: bool = False

    def __post_init__(self) -> None:
        for name in ("embedding_dim", "global_batch", "ranks", "block", "accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, wanted at least 1")
        if self.classes < self.ranks:
            raise ValueError(f"classes: got {self.classes}, wanted at least one for each of {self.ranks} ranks")
        parts = self.ranks * self.accumulation
        if self.global_batch % parts:
            raise ValueError(
                f"global_batch: got {self.global_batch}, wanted a multiple of {parts} (ranks × accumulation)"
            )
        if self.zero_stage not in (0, 1, 2):
            raise ValueError(f"zero_stage: got {self.zero_stage}, wanted 0, 1 or 2")
        if self.fused_update and self.accumulation > 1:
            raise ValueError(
                f"fused_update: got accumulation {self.accumulation}, wanted 1: sums need a gradient to sum in"
            )

    @property
    def rows(self) -> int:
        """S, the most classes that one rank holds."""
        return len(split_range(self.classes, self.ranks, 0))

    @property
    def head_batch(self) -> int:
        """G, samples in one call of the head."""
        return self.global_batch // self.accumulation

    @property
    def micro_batch(self) -> int:
        """Samples of one rank in one call of the network."""
        return self.head_batch // self.ranks


def memory(job: Job, network: Network) -> dict[str, dict[str, int]]:
    """Bytes on the fullest rank: moment -> part -> bytes. A part that is absent takes nothing then."""
    share = -(-network.parameters // job.ranks) if job.zero_stage else network.parameters
    rows = FP32 * job.rows * job.embedding_dim
    parameters = FP32 * network.parameters
    gradients = FP32 * (share if job.zero_stage == 2 else network.parameters)
    always = {
        "classifier rows": rows,
        "classifier momentum": rows,
        "network parameters": parameters,
        "network momentum": FP32 * share,
        # ZeRO updates a copy of its share and then spreads it.
        "ZeRO's copy of its share": FP32 * share if job.zero_stage else 0,
        "reserved (assumed)": RESERVED_BYTES,
    }
    row_gradient = {} if job.fused_update else {"classifier gradient": rows}
    waiting = {
        "activations": job.micro_batch * network.activation_bytes,
        # Autocast keeps the cast weights for the backward pass.
        "bf16 weights": BF16 * network.parameters if job.bf16 else 0,
    }
    # Micro-batches add to one gradient of the network, and to one of the rows.
    summed = {"network gradient": gradients} if job.accumulation > 1 else {}
    moments = {
        "head": always | waiting | row_gradient | summed | {"classifier blocks": head_block_bytes(job)},
        "backward": always
        | waiting
        | row_gradient
        | {"network gradient": gradients, "ZeRO buckets": _buckets(job, network)},
        "update": always
        | row_gradient
        | {"network gradient": gradients, "update copies": _update_copies(job, network)},
    }
    return {moment: {part: size for part, size in parts.items() if size} for moment, parts in moments.items()}


def head_block_bytes(job: Job) -> int:
    """The head's memory beyond rows, their gradient and momentum; independent of C once S exceeds the block.

    The fullest of three moments of a block in the backward pass: its rows with its softmax and what is made of that (in
    fp32 a transposed copy for the product, in bf16 a rounded one); rows, softmax and the rows' gradient; rows, gradient
    and one more product of their size. Besides, six arrays [G, D]: embeddings, features and own rows with gradients.
    """
    block, batch, dim = min(job.block, job.rows), job.head_batch, job.embedding_dim
    if job.bf16:
        fullest = max(dim + 1.5 * batch, 2.5 * dim + 0.5 * batch, 3 * dim)
    else:
        fullest = max(dim + 2 * batch, 2 * dim + batch, 3 * dim)
    return int(FP32 * (block * fullest + 6 * batch * dim))


def head_bytes(job: Job) -> int:
    """All that the head takes on the fullest rank: rows, their momentum and gradient, and a block's working memory."""
    held = 2 if job.fused_update else 3
    return held * FP32 * job.rows * job.embedding_dim + head_block_bytes(job)


def _buckets(job: Job, network: Network) -> int:
    # One buffer of the gradient's size in fp32, and a second one, bf16 or not, under autocast (DeepSpeed 0.19, whose
    # bucket the engine sets to the network's size).
    return 0 if not job.zero_stage else FP32 * network.parameters * (2 if job.bf16 else 1)


def _update_copies(job: Job, network: Network) -> int:
    """Copies of the network's gradient at its update; the rows are updated in place.

    DeepSpeed sends a flat copy of the gradient, before SGD makes one to add weight decay to, at ZeRO 0; it updates its
    share from a flat copy at ZeRO 1 and 2.
    """
    return FP32 * (2 * -(-network.parameters // job.ranks) if job.zero_stage else network.parameters)


def peak(job: Job, network: Network) -> tuple[str, int]:
    """The fullest moment and its bytes."""
    totals = {moment: sum(parts.values()) for moment, parts in memory(job, network).items()}
    moment = max(totals, key=totals.__getitem__)
    return moment, totals[moment]


def largest_classes(job: Job, network: Network, gpu_bytes: int) -> int:
    """The largest C that fits, everything else as in `job`; 0 when the network alone does not."""

    def fits(rows: int) -> bool:
        return peak(replace(job, classes=rows * job.ranks), network)[1] <= gpu_bytes

    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * job.ranks


def traffic(job: Job, network: Network) -> dict[str, int]:
    """Bytes that a rank sends in a step, with ring algorithms; nothing of it grows with C."""
    others = job.ranks - 1
    embeddings = FP32 * job.micro_batch * job.embedding_dim * others * job.accumulation
    return {
        "all-gather of embeddings and labels": embeddings + 8 * job.micro_batch * others * job.accumulation,
        "reduce-scatter of their gradients": embeddings,
        # a maximum and three sums a sample
        "all-reduces of the softmax": 2 * others * 4 * FP32 * job.head_batch * job.accumulation // job.ranks,
        # ZeRO reduces to the owner and gathers the parameters: as many bytes as an all-reduce
        "all-reduce of the network's gradient": 2 * others * FP32 * network.parameters // job.ranks,
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


@dataclass(frozen=True)
class Change:
    """One thing to do differently: what, the peak that it leaves, and whether that fits."""

    what: str
    peak_bytes: int
    fits: bool


def changes(job: Job, network: Network, gpu_bytes: int) -> list[Change]:
    """Single changes that lower the peak, each with what it leads to."""
    candidates: list[tuple[str, Job]] = []
    if not job.fused_update and job.accumulation == 1:
        candidates.append(("fused_update: no row gradient is held", replace(job, fused_update=True)))
    if job.micro_batch % 2 == 0 and not job.fused_update:
        candidates.append((f"accumulation {2 * job.accumulation}", replace(job, accumulation=2 * job.accumulation)))
    candidates += [
        (f"zero_stage {stage}", replace(job, zero_stage=stage)) for stage in (0, 1, 2) if stage != job.zero_stage
    ]
    candidates.append(_more_ranks(job, network, gpu_bytes))
    now = peak(job, network)[1]
    sizes = [(what, peak(other, network)[1]) for what, other in candidates]
    return [Change(what, size, size <= gpu_bytes) for what, size in sizes if size < now]


def _more_ranks(job: Job, network: Network, gpu_bytes: int) -> tuple[str, Job]:
    """The smallest doubling of ranks that fits, or the last that divides batch and classes."""
    while job.micro_batch % 2 == 0 and job.classes >= 2 * job.ranks:
        job = replace(job, ranks=2 * job.ranks)
        if peak(job, network)[1] <= gpu_bytes:
            break
    return f"ranks {job.ranks}", job
