"""Time and memory of the head's step against the number of identities: two ranks, fused update, up to 4 million.

Writes runs/bench/head_scale.json and docs/head_scale.svg. Memory is the operating system's (VmHWM of each rank), so
nothing that torch does not count is left out.
"""

from __future__ import annotations

import time
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
import torch.distributed as dist

from pipeline.head import HeadOptions, ShardedHead
from pipeline.head.margins.a_softmax import ASoftmax
from pipeline.optim.sgd import SGD
from pipeline.planning import Job, head_block_bytes
from tests.benchmarks.results import write
from tests.distributed import ranks as harness
from tests.distributed.ranks import run_ranks

mpl.use("Agg")
G, D, RANKS = 512, 512, 2
CLASSES = (10_000, 100_000, 500_000, 1_000_000, 2_000_000, 4_000_000)
ROOT = Path(__file__).parents[2]


def most_resident() -> int:
    """Most bytes this process ever had in memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def scale(rank: int, ranks: int, classes: int, steps: int) -> dict[str, float]:
    before = most_resident()
    options = HeadOptions(fused_update=True)
    head = ShardedHead(
        classes, D, ASoftmax(m=4), dist.group.WORLD, optimizer=SGD(steps=1, learning_rate=1.0), options=options
    )
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(G, D, generator=generator)[rank * G // ranks : (rank + 1) * G // ranks]
    labels = torch.randint(0, classes, (G,), generator=generator)[rank * G // ranks : (rank + 1) * G // ranks]
    times, losses = [], []
    for step in range(steps):
        started = time.perf_counter()
        loss = head(x.clone().requires_grad_(), labels, 5.0, step=step, learning_rate=1.0).loss
        loss.backward()
        head.update(1.0)
        times.append(time.perf_counter() - started)
        losses.append(loss.item())
    assert losses[-1] < losses[0], "does not train"
    return {"seconds": min(times), "bytes": most_resident() - before}


def test_head_against_the_number_of_identities() -> None:
    harness.TIMEOUT_SECONDS = 900
    rows = []
    for classes in CLASSES:
        results = run_ranks(scale, RANKS, classes, 2)
        job = Job(classes, D, G, RANKS, block=2048, fused_update=True, device="cpu")
        planned = 8 * job.rows * D + head_block_bytes(job)
        measured = max(r["bytes"] for r in results)
        rows.append(
            {
                "classes": classes,
                "seconds": max(r["seconds"] for r in results),
                "gibibytes_a_rank": measured / 2**30,
                "planned_gibibytes": planned / 2**30,
                "measured_over_planned": measured / planned,
            }
        )
        print(rows[-1], flush=True)
    lines = {key: straight(rows, key) for key in ("seconds", "gibibytes_a_rank")}
    write("head_scale", {"ranks": RANKS, "global_batch": G, "embedding_dim": D, "rows": rows, "straight_lines": lines})
    draw(rows)


def straight(rows: list[dict[str, float]], key: str) -> dict[str, float]:
    """Least squares line through the points, and the share of variance that it leaves (0: straight)."""
    c, y = np.array([r["classes"] for r in rows]), np.array([r[key] for r in rows])
    slope, start = np.polyfit(c, y, 1)
    return {
        "per_million": slope * 1e6,
        "at_zero": start,
        "left_over": float(((y - slope * c - start) ** 2).sum() / y.var() / len(y)),
    }


def draw(rows: list[dict[str, float]]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    millions = [r["classes"] / 1e6 for r in rows]
    for axis, key, label in ((axes[0], "seconds", "seconds a step"), (axes[1], "gibibytes_a_rank", "GiB a rank")):
        axis.plot(millions, [r[key] for r in rows], "o-", label="measured")
        axis.set(xlabel="million identities", ylabel=label, xlim=(0, None), ylim=(0, None))
    axes[1].plot(millions, [r["planned_gibibytes"] for r in rows], "--", label="planned")
    axes[1].legend()
    (ROOT / "docs").mkdir(exist_ok=True)
    mpl.rcParams["svg.hashsalt"] = "head_scale"
    figure.savefig(ROOT / "docs" / "head_scale.svg", metadata={"Date": None})
