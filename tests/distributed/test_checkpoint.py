"""Saved on N ranks, loaded on M: every tensor bit for bit; complete or absent."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from cluster.topology import split_range
from pipeline.training import checkpoint
from pipeline.training.checkpoint import CheckpointError, Meta, State
from pipeline.training.saver import Saver
from tests.distributed.ranks import run_ranks

CLASSES, DIM = 11, 3


def truth() -> State:
    generator = torch.Generator().manual_seed(1)
    return State(
        rows_SD=torch.randn(CLASSES, DIM, generator=generator),
        rows_momentum_SD=torch.randn(CLASSES, DIM, generator=generator),
        first_class=0,
        backbone={"conv.weight": torch.randn(4, 2, generator=generator), "bn.num": torch.tensor(7)},
        momenta={"conv.weight": torch.randn(4, 2, generator=generator)},
    )


def share(whole: State, rank: int, ranks: int, fill: bool) -> State:
    mine = split_range(CLASSES, ranks, rank)
    part = State(
        whole.rows_SD[mine.start : mine.stop].clone(),
        whole.rows_momentum_SD[mine.start : mine.stop].clone(),
        mine.start,
        {k: v.clone() for k, v in whole.backbone.items()},
        {k: v.clone() for k, v in whole.momenta.items()},
    )
    if not fill:
        for tensor in (part.rows_SD, part.rows_momentum_SD, *part.backbone.values(), *part.momenta.values()):
            tensor.zero_()
    return part


def meta(step: int, ranks: int, **changes: object) -> Meta:
    return Meta(
        **{
            "step": step,
            "num_classes": CLASSES,
            "embedding_dim": DIM,
            "identities_sha256": "ab",
            "num_ranks": ranks,
            **changes,
        }
    )  # type: ignore[arg-type]


def save_on(rank: int, ranks: int, run: Path, steps: list[int], keep: int) -> None:
    saver = Saver(run, dist.group.WORLD, keep)
    for step in steps:
        saver.begin(share(truth(), rank, ranks, fill=True), meta(step, ranks))
        saved = saver.finish()
        assert saved is not None and saved.error is None, saved


def load_on(rank: int, ranks: int, run: Path, step: int) -> State:
    state = share(truth(), rank, ranks, fill=False)
    checkpoint.load(run, step, state, meta(step, ranks))
    return state


@pytest.mark.parametrize(("saved", "loaded"), [(1, 1), (1, 2), (2, 3), (3, 1), (3, 2)])
def test_any_ranks_to_any_ranks(tmp_path: Path, saved: int, loaded: int) -> None:
    run_ranks(save_on, saved, tmp_path, [4], 1)
    parts = run_ranks(load_on, loaded, tmp_path, 4)
    whole = truth()
    assert torch.equal(torch.cat([p.rows_SD for p in parts]), whole.rows_SD)
    assert torch.equal(torch.cat([p.rows_momentum_SD for p in parts]), whole.rows_momentum_SD)
    for part in parts:
        assert all(torch.equal(part.backbone[k], whole.backbone[k]) for k in whole.backbone)
        assert all(torch.equal(part.momenta[k], whole.momenta[k]) for k in whole.momenta)
    alone = checkpoint.load_backbone(tmp_path)
    assert alone.keys() == whole.backbone.keys()
    assert all(torch.equal(alone[k], whole.backbone[k]) for k in whole.backbone)


def test_the_newest_and_the_first_are_kept(tmp_path: Path) -> None:
    run_ranks(save_on, 1, tmp_path, [0, 10, 20, 30], 2)
    assert checkpoint.complete_steps(tmp_path) == [0, 20, 30]
    with pytest.raises(CheckpointError, match=r"got step 10, wanted one of \[0, 20, 30\]"):
        checkpoint.load_backbone(tmp_path, 10)


def test_a_half_written_checkpoint_does_not_exist(tmp_path: Path) -> None:
    run_ranks(save_on, 1, tmp_path, [10], 2)
    torn = checkpoint.path_of(tmp_path, 20)
    torn.with_name(torn.name + ".partial").mkdir()
    checkpoint.path_of(tmp_path, 30).mkdir()  # no meta.json
    assert checkpoint.complete_steps(tmp_path) == [10]


def load_other(rank: int, ranks: int, run: Path, changes: dict[str, object]) -> str:
    state = share(truth(), rank, ranks, fill=False)
    if "backbone" in changes:
        state.backbone["other.weight"] = torch.zeros(2)
        changes = {}
    try:
        checkpoint.load(run, 4, state, meta(4, ranks, **changes))
    except CheckpointError as error:
        return str(error)
    return "loaded"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"identities_sha256": "cd"},
            "identities_sha256: got cd, wanted ab as saved: the shards name other identities",
        ),
        ({"num_classes": 12}, "num_classes: got 12, wanted 11 as saved"),
        ({"backbone": 1}, "another backbone: missing ['backbone.other.weight'], not wanted nothing"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    run_ranks(save_on, 1, tmp_path, [4], 1)
    (got,) = run_ranks(load_other, 1, tmp_path, changes)
    assert message in got
