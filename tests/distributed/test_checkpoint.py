"""Saved on N ranks, loaded on M: every tensor bit for bit, and no rank reads more than its rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from cluster.ranks.topology import split_range
from pipeline.run import checkpoint
from pipeline.run import saver as saver_module
from pipeline.run.checkpoint import Meta, State
from pipeline.run.folder import RunFolder
from pipeline.run.saver import Saver
from pipeline.run.whole import load_backbone
from tests.distributed.ranks import run_ranks
from tests.distributed.states import CLASSES, DIM, load_on, meta, require_rows, require_whole, save_on, share, truth


@pytest.mark.parametrize(("saved", "loaded"), [(1, 1), (1, 2), (2, 3), (3, 1), (3, 2)])
def test_any_ranks_to_any_ranks(tmp_path: Path, saved: int, loaded: int) -> None:
    run_ranks(save_on, saved, tmp_path, [4], 1)
    parts = run_ranks(load_on, loaded, tmp_path, 4)
    whole = truth()
    require_rows(parts, whole)
    for part in parts:
        require_whole(part, whole)
    _, alone = load_backbone(tmp_path)
    assert alone.keys() == whole.backbone.keys()
    assert all(torch.equal(alone[k], whole.backbone[k]) for k in whole.backbone)


@pytest.mark.parametrize(
    ("saved", "loaded"), [((4, 2), (3, 3)), ((2, 1), (4, 2)), ((3, 3), (2, 1))], ids=["4/2-3/3", "2/1-4/2", "3/3-2/1"]
)
def test_replicas_write_every_row_once_and_load_into_any_layout(
    tmp_path: Path, saved: tuple[int, int], loaded: tuple[int, int]
) -> None:
    written = [name for names in run_ranks(save_in_small_blocks, saved[0], tmp_path, saved[1]) for name in names]
    assert len(written) == len(set(written)), "two ranks wrote the same file"
    files = sorted(RunFolder(tmp_path).checkpoint(4).glob("rows-*"))
    covered = [number for f in files for number in range(*map(int, f.stem.split("-")[1:]))]
    assert covered == list(range(CLASSES)), "a row was written twice or not at all"
    assert len(files) > saved[1], "one block a rank: the replicas shared nothing"
    parts = run_ranks(load_on, loaded[0], tmp_path, 4, loaded[1])
    whole = truth()
    for first in range(0, loaded[0], loaded[1]):  # every replica has all rows
        group = parts[first : first + loaded[1]]
        require_rows(group, whole)


def save_in_small_blocks(rank: int, ranks: int, run: Path, width: int) -> list[str]:
    saver_module.BLOCK_BYTES = 2 * (2 * DIM + 1) * 4  # two rows a file
    save_on(rank, ranks, run, [4], 1, None, width)
    return list(saver_module.own_files(share(truth(), rank, ranks, fill=True, width=width), rank == 0))


ROWS = 60_000


def big_state(rank: int, ranks: int) -> tuple[State, Meta]:
    mine = split_range(ROWS, ranks, rank)
    rows = torch.arange(ROWS * 64, dtype=torch.float32).view(ROWS, 64)[mine.start : mine.stop]
    return State(rows.clone(), {"momentum": rows + 0.5}, mine.start, {}, {}), meta(
        1, ranks, num_classes=ROWS, embedding_dim=64
    )


def save_big(rank: int, ranks: int, run: Path) -> None:
    saver = Saver(run, dist.group.WORLD, 1)
    saver.begin(*big_state(rank, ranks))
    saved = saver.finish()
    assert saved is not None and saved.error is None


def bytes_read_for_load(rank: int, ranks: int, run: Path) -> tuple[int, bool]:
    state, wanted = big_state(rank, ranks)
    rows = state.rows_SD.clone()
    state.rows_SD.zero_()
    before = bytes_read()
    checkpoint.load(run, 1, state, wanted)
    return bytes_read() - before, torch.equal(rows, state.rows_SD)


def bytes_read() -> int:
    """What this process has asked to read so far, cached or not (Linux)."""
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


@pytest.mark.parametrize("saved", [1, 2])
def test_a_rank_reads_its_own_rows_and_no_others(tmp_path: Path, saved: int) -> None:
    run_ranks(save_big, saved, tmp_path)
    own = 2 * (ROWS // 3) * 64 * 4
    for read, right in run_ranks(bytes_read_for_load, 3, tmp_path):
        assert right
        assert own <= read < own * 1.01, f"read {read} bytes for rows of {own}"


def change_while_saving(rank: int, ranks: int, run: Path) -> None:
    state = share(truth(), rank, ranks, fill=True)
    saver = Saver(run, dist.group.WORLD, 1)
    saver.begin(state, meta(4, ranks))
    for tensor in (state.rows_SD, *state.backbone.values()):
        tensor.zero_()
    assert saver.finish() is not None
    assert saver.poll() is None


def test_what_training_changes_meanwhile_is_not_saved(tmp_path: Path) -> None:
    run_ranks(change_while_saving, 2, tmp_path)
    parts = run_ranks(load_on, 1, tmp_path, 4)
    assert torch.equal(parts[0].rows_SD, truth().rows_SD)
    assert torch.equal(parts[0].backbone["conv.weight"], truth().backbone["conv.weight"])
