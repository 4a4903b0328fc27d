"""The planner's memory against what is really allocated: the head on 1 and 2 ranks, DeepSpeed's network on 2."""

import json
import weakref
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import pytest
import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.backbones.size import activation_bytes
from pipeline.backbones.sphereface import SphereFaceBackbone
from pipeline.head import HeadOptions, ShardedHead
from pipeline.head.margins import MARGINS, Margin
from pipeline.head.margins.a_softmax import ASoftmax
from pipeline.optim.sgd import SGD
from pipeline.planning import RESERVED_BYTES, Job, Network, head_block_bytes, memory
from pipeline.recipe.schema import Data, Recipe
from pipeline.training.engine import Engine
from tests.distributed.ranks import run_ranks

# classes, embedding, global batch, block: most beyond the rows is a block's logits, a block's rows, the embeddings
A_SOFTMAX = ASoftmax()

LOSSES = [*(name for name in MARGINS if not name.startswith("toy_")), {"name": "arcface", "filter": 0.4}]

SIZES = [(60_001, 64, 512, 1024), (20_001, 256, 64, 2048), (3_001, 128, 512, 128)]


def highest(run: Callable[[], object]) -> int:
    """Most bytes of tensors allocated at one time by `run`, beyond what was there."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    with TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(trace))
        events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["name"] == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        now += event["args"]["Bytes"]
        most = max(most, now)
    return most


def measure(
    _: int,
    num_ranks: int,
    classes: int,
    dim: int,
    batch: int,
    block: int,
    fused: bool,
    bf16: bool,
    margin: Margin = A_SOFTMAX,
) -> dict[str, int]:
    """Bytes beyond rows and their momentum at the head's and at the update's fullest."""
    group = dist.group.WORLD if num_ranks > 1 else None
    options = HeadOptions(torch.bfloat16 if bf16 else torch.float32, block, fused)
    head = ShardedHead(classes, dim, margin, group, optimizer=SGD(steps=1, learning_rate=0.1), options=options)
    x = torch.randn(batch // num_ranks, dim, requires_grad=True)
    labels = torch.randint(classes, (batch // num_ranks,))

    def loss() -> None:
        x.grad = None
        head(x, labels, 5.0, learning_rate=0.1).loss.backward()

    in_head = highest(loss)  # the first step: the gradient is allocated in it
    return {"head": in_head, "update": highest(lambda: head.update(0.1))}


def planned(
    num_ranks: int, classes: int, dim: int, batch: int, block: int, fused: bool, bf16: bool
) -> tuple[Job, dict[str, int]]:
    """The classifier's own bytes at each moment."""
    job = Job(classes, dim, batch, num_ranks, block, bf16=bf16, fused_update=fused, device="cpu")
    moments = memory(job, Network(parameters=0, activation_bytes=0, macs=0))
    return job, {moment: sum(parts.values()) - RESERVED_BYTES for moment, parts in moments.items()}


@pytest.mark.parametrize(("fused", "bf16"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_heads_memory_is_as_planned(
    num_ranks: int, size: tuple[int, int, int, int], fused: bool, bf16: bool
) -> None:
    got = measure(0, 1, *size, fused, bf16) if num_ranks == 1 else run_ranks(measure, num_ranks, *size, fused, bf16)[0]
    job, plan = planned(num_ranks, *size, fused, bf16)
    rows = 4 * job.rows * job.embedding_dim
    held = 0 if fused else rows
    assert 2 * rows + got["head"] == pytest.approx(plan["head"], rel=0.1)
    # the row gradient was there before the update began
    assert 2 * rows + held + got["update"] == pytest.approx(plan["update"], rel=0.1)
    # ... and the part that is not rows, which a large classifier would hide
    assert got["head"] - held == pytest.approx(head_block_bytes(job), rel=0.15)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_heads_memory_is_as_planned_with_every_loss(
    size: tuple[int, int, int, int], loss: str | dict[str, Any]
) -> None:
    margin = MARGINS.parse(loss)
    job, _ = planned(1, *size, fused=True, bf16=False)
    got = measure(0, 1, *size, True, False, margin)["head"]
    assert got == pytest.approx(head_block_bytes(replace(job, margin=margin)), rel=0.1)


class Allocated(TorchDispatchMode):
    """Most bytes of CPU tensors alive at a time. (The profiler misses what gloo's threads free.)"""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                self._count(tensor.untyped_storage())
        return results

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def gone(_: object) -> None:
            self.now -= size
            self._alive.pop(key, None)

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size
        self.most = max(self.most, self.now)


SIDE, MICRO_BATCH, DIM = 32, 4, 512


def most_in_training(_: int, num_ranks: int, zero_stage: int, accumulation: int, bf16: bool) -> int:
    """Most bytes that a rank holds in two steps of the backbone alone."""
    recipe = Recipe(
        data=Data(shards=Path("none"), global_batch=MICRO_BATCH * num_ranks * accumulation, accumulation=accumulation),
        backbone=SphereFaceBackbone(name="sphereface4", embedding_dim=DIM),
        optimizer=SGD(steps=2, learning_rate=0.1),
        precision="bfloat16" if bf16 else "float32",
        zero_stage=cast(Literal[0, 1, 2, 3], zero_stage),
    )
    with Allocated() as allocated:
        engine = Engine(
            SphereFaceBackbone(name="sphereface4", embedding_dim=DIM).build((SIDE, SIDE)),
            recipe,
            dist.group.WORLD,
        )
        allocated.most = allocated.now  # the start is not planned
        for _ in range(2 * accumulation):
            embeddings = engine.embed(torch.zeros(MICRO_BATCH, 3, SIDE, SIDE))
            engine.backward(embeddings, torch.zeros_like(embeddings))
            engine.step(0.1)
    return allocated.most


@pytest.mark.parametrize(
    ("zero_stage", "accumulation", "bf16"),
    [(0, 1, False), (1, 1, False), (2, 1, False), (3, 1, False), (1, 1, True), (2, 2, True), (3, 2, True)],
)
def test_the_networks_memory_is_as_planned_at_every_zero_stage(zero_stage: int, accumulation: int, bf16: bool) -> None:
    got = max(run_ranks(most_in_training, 2, zero_stage, accumulation, bf16))
    module = SphereFaceBackbone(name="sphereface4", embedding_dim=DIM).build((SIDE, SIDE))
    sizes = [p.numel() for p in module.parameters()]
    dtype = torch.bfloat16 if bf16 else torch.float32
    network = Network(sum(sizes), activation_bytes(module, (SIDE, SIDE), dtype), 0, max(sizes))
    job = Job(2, DIM, MICRO_BATCH * 2 * accumulation, 2, 1, accumulation, zero_stage, bf16, device="cpu")
    others = ("classifier", "reserved")
    moments = memory(job, network).values()
    planned = max(sum(size for part, size in alive.items() if not part.startswith(others)) for alive in moments)
    assert got == pytest.approx(planned, rel=0.1), asdict(job)
