"""A checkpoint is complete or absent: what is damaged, not shared or did not fit on the disk is named on all ranks."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch.distributed as dist

from pipeline.run import checkpoint
from pipeline.run.checkpoint import CheckpointError
from pipeline.run.folder import RunFolder
from pipeline.run.saver import Saver
from pipeline.run.whole import damage, newest_whole
from tests.distributed.ranks import run_ranks
from tests.distributed.states import meta, save_on, share, truth


def newest_on(rank: int, ranks: int, run: Path) -> int | str | None:  # noqa: ARG001
    try:
        return newest_whole(run, dist.group.WORLD)
    except CheckpointError as error:
        return str(error)


def harm(folder: Path, how: str) -> None:
    rows = sorted(folder.glob("rows-*"))[-1]
    if how == "flipped bit":
        content = bytearray(rows.read_bytes())
        content[-1] ^= 1
        rows.write_bytes(content)
    elif how == "cut short":
        rows.write_bytes(rows.read_bytes()[:-1])
    elif how == "file gone":
        (folder / "backbone.safetensors").unlink()
    else:
        (folder / "meta.json").write_text("{")


@pytest.mark.parametrize("how", ["flipped bit", "cut short", "file gone", "torn meta.json"])
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path: Path, how: str) -> None:
    run_ranks(save_on, 2, tmp_path, [10, 20], 3)
    assert run_ranks(newest_on, 3, tmp_path) == [20, 20, 20]
    harm(RunFolder(tmp_path).checkpoint(20), how)
    (fault,) = damage(RunFolder(tmp_path).checkpoint(20))
    words = {"flipped bit": "damaged: got SHA-256", "cut short": "bytes, wanted", "file gone": "No such file"}
    assert words.get(how, "meta.json: not readable") in fault
    assert "step-00000020" in fault
    assert run_ranks(newest_on, 3, tmp_path) == [10, 10, 10]
    harm(RunFolder(tmp_path).checkpoint(10), how)
    for text in run_ranks(newest_on, 2, tmp_path):
        assert "checkpoints: got [10, 20], all of them damaged, wanted one whole" in text


def newest_where_each_rank_has_its_own_folder(rank: int, ranks: int, run: Path) -> int | str | None:
    return newest_on(rank, ranks, run if rank == 0 else run / "elsewhere")


def test_a_folder_that_is_not_shared_is_reported(tmp_path: Path) -> None:
    run_ranks(save_on, 2, tmp_path, [10], 3)
    for text in run_ranks(newest_where_each_rank_has_its_own_folder, 2, tmp_path):
        assert "sees checkpoints [], rank 0 on " in text
        assert "sees [10]; wanted one folder that all hosts share" in text


def save_where_each_rank_has_its_own_folder(rank: int, ranks: int, run: Path) -> str | None:
    saver = Saver(run / str(rank), dist.group.WORLD, 1)
    saver.begin(share(truth(), rank, ranks, fill=True), meta(10, ranks))
    saved = saver.finish()
    assert saved is not None
    return saved.error


def test_what_is_saved_into_folders_that_are_not_shared_is_no_checkpoint(tmp_path: Path) -> None:
    for error in run_ranks(save_where_each_rank_has_its_own_folder, 2, tmp_path):
        assert error is not None and error.startswith("rank 0 on ") and "step-00000010.partial/rows-" in error
        assert error.endswith(
            "No such file or directory, as another rank has written; wanted one folder that all hosts share"
        )
    assert not list((tmp_path / "0/checkpoints").iterdir())


def save_on_a_full_disk(rank: int, ranks: int, run: Path) -> list[str | None]:
    saver = Saver(run, dist.group.WORLD, 1)
    outcomes = []
    for step in (10, 20, 30):
        if rank == 1:  # from 20 on, this rank's disk takes no more than 100 bytes a file; later there is room again
            limit = 100 if step == 20 else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        saver.begin(share(truth(), rank, ranks, fill=True), meta(step, ranks))
        saved = saver.finish()
        assert saved is not None and saved.step == step
        outcomes.append(saved.error)
        if step == 20:
            assert checkpoint.complete_steps(run) == [10], "the last good one went, or a bad one stayed"
            assert damage(RunFolder(run).checkpoint(10)) == []
            assert rank != 0 or not (run / "checkpoints" / "step-00000020.partial").exists()
    return outcomes


def test_a_full_disk_costs_the_save_and_nothing_else(tmp_path: Path) -> None:
    for outcome in run_ranks(save_on_a_full_disk, 2, tmp_path):
        assert outcome[0] is None and outcome[2] is None
        assert outcome[1] is not None and outcome[1].startswith("rank 1 on ") and "File too large" in outcome[1]
    assert checkpoint.complete_steps(tmp_path) == [30]
