"""What a rank sends and computes in a step, how long that takes, and a whole run, by the rates of a calibration run.

What is assumed: a rank computes as fast as it did when it was measured, whatever the number of ranks, of classes and of
images; backbones take the time of their multiply-adds; collectives are rings, as fast as their slowest link: of one
host's ranks or between hosts; without ZeRO the network's runs under the backward pass of the last micro-batch, and
nothing overlaps with the others; decoding overlaps with all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from pipeline.head.margins import Target
from pipeline.head.margins.binary import BinaryMargin
from pipeline.planning.failures import Failures, best_interval_seconds, lost_work_seconds, overhead
from pipeline.planning.job import BF16, FP32, Job, Network
from pipeline.planning.memory import network_state_bytes, row_slot_bytes
from pipeline.planning.rates import Link, Rates

NETWORK_EXCHANGE = "all-reduce of the network's gradient"


def traffic(job: Job, network: Network) -> dict[str, int]:
    """Bytes that a rank sends in a step, with ring algorithms; nothing of it grows with C."""
    others = job.ranks - 1
    # Reduced and gathered once a step; ZeRO 2 reduces after every micro-batch; ZeRO 3 also gathers in every forward and
    # every backward pass. Two passes are as many bytes as an all-reduce. ZeRO gathers parameters, which are fp32.
    reduces = (2, 1, job.accumulation, job.accumulation)[job.zero_stage]
    gathers = (0, 1, 1, 2 * job.accumulation)[job.zero_stage]
    embeddings = job.micro_batch * job.embedding_dim * others * job.accumulation
    numbers = 8 * job.micro_batch * others * job.accumulation * (2 if job.margin.draws else 1)
    sent = {
        "all-gather of embeddings and labels": (BF16 if job.bf16 else FP32) * embeddings + numbers,
        "reduce-scatter of their gradients": FP32 * embeddings,
        "all-reduces of the loss": 2
        * others
        * sum(_reduced(job))
        * FP32
        * job.head_batch
        * job.accumulation
        // job.ranks,
        NETWORK_EXCHANGE: (reduces * job.exchange + gathers * FP32) * others * network.parameters // job.ranks,
    }
    if network.norm_bytes:
        statistics = 2 * others * network.norm_bytes * job.accumulation // job.ranks
        sent["all-reduces of batch norms' statistics"] = statistics
    return sent


def _reduced(job: Job) -> list[int]:
    """All-reduces of the loss, and the numbers a sample in each: see `pipeline.head.head`."""
    margin = job.margin
    one = torch.ones(1, 1)
    sums = 3 if margin.penalty(Target(one, one)) is None else 4
    maximum = [] if isinstance(margin, BinaryMargin) else [1]
    return [*maximum, sums, 1] if margin.initial_state() else [*maximum, sums]


def model_flops(job: Job, network: Network) -> dict[str, int]:
    """Floating-point operations of a rank in a step that the model needs, by whatever means they are computed."""
    return {
        # logits; gradients of embeddings and of rows
        "classifier": 3 * _product(job),
        # forward, and twice that backward
        "network": 3 * 2 * network.macs * job.micro_batch * job.accumulation,
    }


def flops(job: Job, network: Network) -> dict[str, int]:
    """Floating-point operations of a rank in a step, as they are done: logits are not kept, but computed again."""
    needed = model_flops(job, network)
    return {**needed, "classifier": needed["classifier"] + _product(job)}


def _product(job: Job) -> int:
    return 2 * job.head_batch * job.rows * job.embedding_dim * job.accumulation


def step_parts(job: Job, network: Network, rates: Rates) -> dict[str, float]:
    """Seconds of a step by part; they add up to it.

    Raises:
        ValueError: for several ranks, with rates of one.
    """
    work = flops(job, network)
    own = network.parameters // (job.ranks if job.zero_stage else 1)
    rows = 0 if job.fused_update else job.rows * job.embedding_dim  # fused: in the classifier's own time
    of_network = job.accumulation * rates.network_call_seconds + work["network"] / rates.network_flops_per_second
    parts = {
        "network, forward and backward": of_network,
        "classifier": job.accumulation * rates.head_call_seconds + work["classifier"] / rates.head_flops_per_second,
        "update": FP32 * (own + rows) / rates.update_bytes_per_second,
        "communication": communication_seconds(job, network, rates, of_network / job.accumulation),
        "agreeing, bookkeeping": rates.other_seconds,
    }
    decoding = job.rank_batch / rates.decode_images_per_second
    parts["waiting for images"] = max(0.0, decoding - sum(parts.values()))
    return parts


def step_seconds(job: Job, network: Network, rates: Rates) -> float:
    """Seconds of a step."""
    return sum(step_parts(job, network, rates).values())


def communication_seconds(job: Job, network: Network, rates: Rates, pass_seconds: float = 0.0) -> float:
    """Of a step's collectives, one after another: latency of every step of their rings, and the bytes.

    Args:
        pass_seconds: forward and backward pass of a micro-batch, under whose backward the network's exchange hides.

    Raises:
        ValueError: for several ranks, with rates of one.
    """
    if job.ranks == 1:
        return 0.0
    link = _link(job, rates)
    sent = traffic(job, network)
    sent.pop(NETWORK_EXCHANGE)
    # a gather of embeddings, one of labels and, if the margin draws, one of samples' numbers; a scatter; the loss's
    # all-reduces, two of the step's and those of batch norms, two passes each
    reduces = len(_reduced(job)) + 2 + network.norm_reduces
    hops = job.accumulation * (job.ranks - 1) * (3 + job.margin.draws + reduces * 2)
    others = hops * link.hop_seconds + sum(sent.values()) / link.bytes_per_second
    return others + exchange_seconds(job, network, rates, pass_seconds)


def exchange_seconds(job: Job, network: Network, rates: Rates, pass_seconds: float) -> float:
    """By how much the exchange of the network's gradient lengthens a step.

    Without ZeRO it hides under the last backward pass, two thirds of forward and backward; what is longer is waited
    for. What the exchange takes from the products beside it (processors, caches, memory) is not hidden.

    Args:
        pass_seconds: forward and backward pass of a micro-batch.

    Raises:
        ValueError: for several ranks, with rates of one.
    """
    if job.ranks == 1:
        return 0.0
    link, sent = _link(job, rates), traffic(job, network)[NETWORK_EXCHANGE]
    ring = 2 * (job.ranks - 1) * link.hop_seconds + sent / link.bytes_per_second
    if job.zero_stage:
        return ring
    per_work = rates.exchange_bytes_per_work_second
    work = 0.0 if per_work is None else sent / per_work
    return max(work, ring - pass_seconds * 2 / 3)


def _link(job: Job, rates: Rates) -> Link:
    link = rates.link(job.hosts)
    if link is None:
        raise ValueError(
            f"rates of 1 rank: they do not say how fast ranks exchange, and the plan is for {job.ranks}; calibrate on "
            "several"
        )
    return link


def scaling(job: Job, network: Network, rates: Rates, ranks: Sequence[int]) -> list[tuple[int, float, float]]:
    """Ranks, images a second and efficiency against the fewest, for the same global batch split over more of them.

    Numbers of ranks that the batch or the classes cannot be split over are left out.
    """
    found: list[tuple[int, float, float]] = []
    for number in sorted(ranks):
        try:
            seconds = step_seconds(replace(job, ranks=number), network, rates)
        except ValueError:
            continue
        speed = job.global_batch / seconds
        first = found[0] if found else (number, speed, 1.0)
        found.append((number, speed, speed / number / (first[1] / first[0])))
    return found


@dataclass(frozen=True)
class Course:
    """A whole run: seconds from start to end, and what of them is not training.

    Attributes:
        training_seconds: steps alone.
        stall_seconds: of one save.
        write_seconds: until it is whole.
        restart_seconds: from a failure to the next step.
        failures: to be expected.
        lost_work_seconds: training that one takes with it, on average.
        total_seconds: with saves, failures, restarts and lost work.
        best_interval_steps: between saves, by Daly.
    """

    training_seconds: float
    stall_seconds: float
    write_seconds: float
    restart_seconds: float
    failures: float
    lost_work_seconds: float
    total_seconds: float
    best_interval_steps: int

    @property
    def goodput(self) -> float:
        """The share of the time that goes into steps that count."""
        return self.training_seconds / self.total_seconds


def course(
    job: Job,
    network: Network,
    rates: Rates,
    *,
    steps: int,
    save_every: int,
    host_hours: float,
    noticed_seconds: float,
) -> Course:
    """How a run of `steps` goes that saves after every `save_every` of them.

    Args:
        host_hours: mean time between failures of a host; one lost ends all ranks.
        noticed_seconds: from a failure until all ranks have ended.
    """
    step = step_seconds(job, network, rates)
    rows = FP32 * job.rows * job.embedding_dim + row_slot_bytes(job, job.rows)
    backbone = network_state_bytes(job, network)
    stall = (rows + backbone) / rates.copy_bytes_per_second  # rank 0 copies the backbone as well
    write = (rows * job.ranks + backbone) / rates.write_bytes_per_second
    restart = noticed_seconds + rates.start_seconds
    failing = Failures(host_hours * 3600 / job.hosts, restart, stall, write)
    training = steps * step
    total = training * (1 + overhead(save_every * step, failing))
    return Course(
        training,
        stall,
        write,
        restart,
        total / failing.between_seconds,
        lost_work_seconds(save_every * step, failing),
        total,
        max(1, round(best_interval_seconds(failing) / step)),
    )
