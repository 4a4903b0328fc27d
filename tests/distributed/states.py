"""A small checkpoint's state, whole and as ranks share it; saved and loaded by ranks that `run_ranks` starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cluster.ranks.topology import split_range
from pipeline.run import checkpoint
from pipeline.run.checkpoint import Meta, State
from pipeline.run.saver import Saver

CLASSES, DIM = 11, 3


def truth() -> State:
    generator = torch.Generator().manual_seed(1)
    return State(
        rows_SD=torch.randn(CLASSES, DIM, generator=generator),
        row_slots={
            "momentum": torch.randn(CLASSES, DIM, generator=generator),
            "count": torch.randn(CLASSES, generator=generator),
        },
        first_class=0,
        backbone={"conv.weight": torch.randn(4, 2, generator=generator), "bn.num": torch.tensor(7)},
        backbone_slots={
            "momentum": {"conv.weight": torch.randn(4, 2, generator=generator)},
            "count": {"conv.weight": torch.tensor(5.0)},
        },
        head_state={"mean": torch.tensor(0.25)},
    )


def share(whole: State, rank: int, ranks: int, fill: bool, width: int | None = None) -> State:
    """A rank's state where `width` ranks (None: all) split the classes and the others replicate them."""
    width = width or ranks
    mine = split_range(CLASSES, width, rank % width)
    part = State(
        whole.rows_SD[mine.start : mine.stop].clone(),
        {name: slot[mine.start : mine.stop].clone() for name, slot in whole.row_slots.items()},
        mine.start,
        {k: v.clone() for k, v in whole.backbone.items()},
        {slot: {k: v.clone() for k, v in trained.items()} for slot, trained in whole.backbone_slots.items()},
        {k: v.clone() for k, v in whole.head_state.items()},
        replica=rank // width,
        num_replicas=ranks // width,
    )
    if not fill:
        for tensor in (*part.rows_tensors(slice(None)).values(), *part.whole_tensors().values()):
            tensor.zero_()
    return part


def require_rows(parts: list[State], whole: State) -> None:
    """Refuse when the parts' rows and slots, one after the other, are not those of `whole` bit for bit."""
    for name, wanted in whole.rows_tensors(slice(None)).items():
        assert torch.equal(torch.cat([part.rows_tensors(slice(None))[name] for part in parts]), wanted), name


def require_whole(part: State, whole: State) -> None:
    """Refuse when what is saved once is not that of `whole` bit for bit."""
    for name, wanted in whole.whole_tensors().items():
        assert torch.equal(part.whole_tensors()[name], wanted), name


def meta(step: int, ranks: int, **changes: Any) -> Meta:
    return replace(Meta(step, CLASSES, DIM, "ab", ranks), **changes)


def save_on(
    rank: int,
    ranks: int,
    run: Path,
    steps: list[int],
    keep: int,
    keep_every: int | None = None,
    width: int | None = None,
) -> None:
    saver = Saver(run, dist.group.WORLD, keep, keep_every)
    for step in steps:
        saver.begin(share(truth(), rank, ranks, fill=True, width=width), meta(step, ranks))
        saved = saver.finish()
        assert saved is not None and saved.error is None, saved


def load_on(rank: int, ranks: int, run: Path, step: int, width: int | None = None) -> State:
    state = share(truth(), rank, ranks, fill=False, width=width)
    checkpoint.load(run, step, state, meta(step, ranks))
    return state
