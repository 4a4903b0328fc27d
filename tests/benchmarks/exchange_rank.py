"""One rank of `test_exchange.py`, on its own host: steps of the backbone with each way to exchange, taking turns.

`python -m tests.benchmarks.exchange_rank ADDRESS RANK RANKS IMAGES`; rank 0 prints, as JSON, for each form of computing
the seconds by way, what the planner makes of computing and sending alone, and what hiding all that can be hidden would
take; and the rates of the ring.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeAlias
from unittest import mock

import deepspeed
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cluster.ranks.collective_rates import RingRates, bytes_per_work_second, ring_rates
from cluster.ranks.exchange import GradientExchange, in_buckets
from pipeline.backbones.sphereface import SphereFaceBackbone
from pipeline.optim.sgd import SGD
from pipeline.planning import FP32, Job, Rates
from pipeline.planning.job import BF16
from pipeline.planning.of_recipe import network_of
from pipeline.planning.timing import exchange_seconds
from pipeline.recipe.schema import Data, Recipe
from pipeline.training import engine as engine_file
from pipeline.training.engine import Engine
from tests.benchmarks.waiting import Layer, Waiting, at_best, measured

ROUNDS, RATE = 5, 0.01
SIZE = (112, 96)
BACKBONE = SphereFaceBackbone(name="sphereface20", embedding_dim=512)
OPTIMIZER = SGD(steps=10**6, learning_rate=RATE)

# Here the ranks' products, and gloo's sums and copies, take the same processors. On a GPU products leave them free.
ON_CPU, ELSEWHERE = "computing on the CPU", "computing elsewhere: each layer waits for as long as it took"

Build: TypeAlias = Callable[[], nn.Module]
Step: TypeAlias = Callable[[], None]


class Afterwards(GradientExchange):
    """Sends the same buckets, but none before the backward pass has ended."""

    def __init__(self, parameters: Any, group: Any, dtype: torch.dtype, is_last: Callable[[], bool]) -> None:
        self.ended = False
        super().__init__(parameters, group, dtype, lambda: self.ended and is_last())

    def finish(self) -> None:
        """Send everything, and wait."""
        self.ended = True
        super().finish()
        self.ended = False


def never(parameters: Any, group: Any, dtype: torch.dtype, _: Callable[[], bool]) -> GradientExchange:
    """Computes and sends nothing."""
    return GradientExchange(parameters, group, dtype, lambda: False)


def ours(
    build: Build,
    way: Callable[..., GradientExchange],
    exchange: Literal["float32", "bfloat16"],
    ranks: int,
    images_a_rank: int,
) -> Step:
    """A step of a new engine of ours."""
    recipe = Recipe(
        data=Data(shards=Path("none"), global_batch=images_a_rank * ranks),
        backbone=BACKBONE,
        optimizer=OPTIMIZER,
        exchange=exchange,
    )
    torch.manual_seed(0)
    with mock.patch.object(engine_file, "GradientExchange", way):
        engine = Engine(build(), recipe, dist.group.WORLD)
    images = torch.randn(images_a_rank, 3, *SIZE)

    def step() -> None:
        embeddings = engine.embed(images)
        engine.backward(embeddings, torch.full_like(embeddings, 1e-3))
        engine.step(RATE)

    return step


def optimizer_of(backbone: nn.Module) -> torch.optim.Optimizer:
    """As our engine makes it."""
    group = {"params": list(backbone.parameters()), "weight_decay": OPTIMIZER.weight_decay}
    return OPTIMIZER.for_backbone([group])


def deepspeeds(build: Build, ranks: int, images_a_rank: int) -> Step:
    """A step of DeepSpeed's engine as it comes, ZeRO 0."""
    torch.manual_seed(0)
    backbone = build()
    sgd = optimizer_of(backbone)
    config = {
        "train_batch_size": images_a_rank * ranks,
        "train_micro_batch_size_per_gpu": images_a_rank,
        "steps_per_print": 2**62,
    }
    engine, *_ = deepspeed.initialize(model=backbone, optimizer=sgd, config=config)
    images = torch.randn(images_a_rank, 3, *SIZE)

    def step() -> None:
        engine.backward((engine(images) * 1e-3).sum())
        engine.step()

    return step


def torchs(build: Build, images_a_rank: int) -> Step:
    """A step of torch's DistributedDataParallel as it comes."""
    torch.manual_seed(0)
    backbone = DistributedDataParallel(build())
    sgd = optimizer_of(backbone)
    images = torch.randn(images_a_rank, 3, *SIZE)

    def step() -> None:
        (backbone(images) * 1e-3).sum().backward()
        sgd.step()
        sgd.zero_grad()

    return step


def sending(exchange: str) -> Step:
    """Only the buckets on the wire, all of them there at once."""
    network = shapes()
    dtype = getattr(torch, exchange)
    buckets = [
        torch.zeros(sum(p.numel() for p in bucket), dtype=dtype) for bucket in in_buckets(list(network.parameters()))
    ]

    def send() -> None:
        for work in [dist.all_reduce(bucket, async_op=True) for bucket in buckets]:
            work.wait()

    return send


def shapes() -> nn.Module:
    """The network without its numbers."""
    with torch.device("meta"):
        return BACKBONE.build(SIZE)


def planned(ranks: int, images_a_rank: int, ring: RingRates, per_work: float, computing: float) -> dict[str, float]:
    """Seconds of a step with our exchange, as the planner has them."""
    network = network_of(BACKBONE, SIZE, bf16=False)
    work = 6 * network.macs * images_a_rank
    rates = Rates(
        ranks=ranks,
        network_flops_per_second=work / computing,
        network_call_seconds=0,
        head_flops_per_second=1,
        head_call_seconds=0,
        update_bytes_per_second=1,
        decode_images_per_second=1,
        other_seconds=0,
        collective_bytes_per_second=None,
        hop_seconds=None,
        host_bytes_per_second=ring.bytes_per_second,
        host_hop_seconds=ring.hop_seconds,
        exchange_bytes_per_work_second=per_work,
        copy_bytes_per_second=1,
        write_bytes_per_second=1,
        start_seconds=1,
    )
    found = {}
    for way, size in (("ours, under it", FP32), ("ours, under it, bfloat16", BF16)):
        job = Job(1000, 512, images_a_rank * ranks, ranks, bf16=False, exchange=size, ranks_per_host=1)
        found[way] = computing + exchange_seconds(job, network, rates, computing)
    job = Job(1000, 512, images_a_rank * ranks, ranks, bf16=False, ranks_per_host=1)
    # ours, sent after the backward pass: nothing is hidden
    found["ours, after the backward pass"] = computing + exchange_seconds(job, network, rates, 0.0)
    return found


def of_form(build: Build, ranks: int, images_a_rank: int) -> dict[str, float]:
    """The least seconds of a step by way, all of which take turns: other work on the machine only adds to them."""
    ways = {
        "computing alone": ours(build, never, "float32", ranks, images_a_rank),
        "sending alone": sending("float32"),
        "sending alone, bfloat16": sending("bfloat16"),
        "DeepSpeed's, after the backward pass": deepspeeds(build, ranks, images_a_rank),
        "torch's DistributedDataParallel, under it": torchs(build, images_a_rank),
        "ours, after the backward pass": ours(build, Afterwards, "float32", ranks, images_a_rank),
        "ours, under it": ours(build, GradientExchange, "float32", ranks, images_a_rank),
        "ours, under it, bfloat16": ours(build, GradientExchange, "bfloat16", ranks, images_a_rank),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(ROUNDS + 1):
        for way, run in ways.items():
            dist.barrier()
            started = time.perf_counter()
            run()
            dist.barrier()
            if turn:
                seconds[way].append(time.perf_counter() - started)
    return {way: min(times) for way, times in seconds.items()}


def layers_of_rank_0(rank: int, images_a_rank: int) -> list[Layer]:
    """What rank 0 measures of the network while the other ranks wait, on every rank."""
    layers: list[Any] = [None]
    if rank == 0:
        layers = [measured(BACKBONE.build(SIZE), torch.randn(images_a_rank, 3, *SIZE), ROUNDS)]
    dist.broadcast_object_list(layers)
    return list(layers[0])


def main() -> None:
    """Measure, and print on rank 0."""
    address, (rank, ranks, images_a_rank) = sys.argv[1], map(int, sys.argv[2:])
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK="0")
    torch.set_num_threads(1)
    store = dist.TCPStore(address, 29500, ranks, rank == 0, timedelta(seconds=120))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=120))
    layers = layers_of_rank_0(rank, images_a_rank)
    ring = ring_rates(torch.device("cpu"))
    forms: dict[str, Build] = {
        ON_CPU: lambda: BACKBONE.build(SIZE),
        ELSEWHERE: lambda: Waiting(BACKBONE.build(SIZE), layers, BACKBONE.embedding_dim),
    }
    found = {}
    for form, build in forms.items():
        computes = ours(build, never, "float32", ranks, images_a_rank)
        per_work = bytes_per_work_second(computes, ring, torch.device("cpu"))
        seconds = of_form(build, ranks, images_a_rank)
        computing = seconds["computing alone"]
        best = {
            f"ours, under it{exchange}": at_best(shapes(), layers, computing, seconds[f"sending alone{exchange}"])
            for exchange in ("", ", bfloat16")
        }
        plan = planned(ranks, images_a_rank, ring, per_work, computing)
        found[form] = {"seconds": seconds, "planned": plan, "at_best": best, "sent_bytes_per_work_second": per_work}
        gc.collect()  # the engines, before the next are made
    if rank == 0:
        print(json.dumps({"forms": found, "ring": asdict(ring)}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
