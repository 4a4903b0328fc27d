"""The planner's memory of the head against what the real head allocates, on 1 and 2 ranks."""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from cluster.planner import RESERVED_BYTES, Job, Network, head_block_bytes, memory
from pipeline.head.head import HeadOptions, ShardedHead
from pipeline.head.margins import Margin
from tests.distributed.ranks import run_ranks

# classes, embedding, global batch, block: most beyond the rows is a block's logits, a block's rows, the embeddings
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
    _: int, num_ranks: int, classes: int, dim: int, batch: int, block: int, fused: bool, bf16: bool
) -> dict[str, int]:
    """Bytes beyond rows and momentum at the head's and at the update's fullest."""
    group = dist.group.WORLD if num_ranks > 1 else None
    options = HeadOptions(torch.bfloat16 if bf16 else torch.float32, block, fused)
    head = ShardedHead(classes, dim, Margin("a_softmax"), group, weight_decay=5e-4, options=options)
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
    job = Job(classes, dim, batch, num_ranks, block, bf16=bf16, fused_update=fused)
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
