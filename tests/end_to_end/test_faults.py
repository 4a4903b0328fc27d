"""One run on this machine that suffers one fault after another, and continues after each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.ranks.black_box import spy
from cluster.stop import EXIT_STOPPED
from pipeline.run.checkpoint import complete_steps
from pipeline.run.folder import RunFolder
from pipeline.run.whole import damage
from tests.end_to_end.launcher import metrics, write_recipe
from tests.end_to_end.supervised import Supervised
from tests.faces import write_shards
from tests.fault_table import Row, record

MEGABYTES = 200


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, so that it can be full and read-only."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a small disk: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", disk], check=True)


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb") as filler:
        try:
            while True:
                filler.write(bytes(1 << 20))
        except OSError:
            pass


def kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def kill_and_damage(supervised: Supervised) -> None:
    kill(*supervised.ranks())
    newest = RunFolder(supervised.run).checkpoint(complete_steps(supervised.run)[-1]) / "backbone.safetensors"
    with newest.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))


def test_one_fault_after_another(small_disk: Path, tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "set", identities=7, images=6)
    recipe, run = write_recipe(tmp_path / "recipe.yaml", shards, 100_000), small_disk / "run"
    supervised = Supervised(tmp_path, ["--ranks", "2"], recipe, run)
    try:
        supervised.wait_for(supervised.ranks)
        began = time.time()
        supervised.wait_for(lambda: supervised.step >= 12)
        waited = supervised.suffer(
            "Rank killed",
            "SIGKILL to rank 1 of 2",
            lambda: kill(supervised.ranks()[1]),
            "was killed by SIGKILL",
            "supervisor ends the other rank and starts again, resumed",
        )
        waited += supervised.suffer(
            "Newest checkpoint damaged",
            "SIGKILL to all ranks, then one bit of the backbone's file flipped",
            lambda: kill_and_damage(supervised),
            "passed over for the one before",
            "named; resumed from the checkpoint before",
        )
        wait_for_another_save(supervised)
        outlast(
            supervised,
            Row("Disk full", "every free byte of the run's disk taken", 0, None, None, ""),
            lambda: fill(small_disk),
            "not written: rank",
            (small_disk / "filler").unlink,
        )
        assert "No space left on device" in supervised.output
        outlast(
            supervised,
            Row("Directory read-only", "the run's disk remounted read-only", 0, None, None, ""),
            lambda: remount(small_disk, "ro"),
            "not written: rank",
            lambda: remount(small_disk, "rw"),
        )
        waited += supervised.suffer(
            "Rank frozen",
            "SIGSTOP to rank 1 of 2 (faults.step_seconds 8)",
            lambda: os.kill(supervised.ranks()[1], signal.SIGSTOP),
            "silent: rank 1 on",
            "watchdog prints stacks and the silent rank, ends its own; supervisor kills the frozen one; resumed",
        )
        stacks = RunFolder(run).stacks
        assert "silent: rank 1 on" in (stacks / "rank-0.txt").read_text()
        if spy() is not None:
            assert "MainThread" in (stacks / "rank-1.txt").read_text()
        at, before = time.time(), supervised.step
        os.kill(supervised.ranks()[0], signal.SIGTERM)
        assert supervised.end() == EXIT_STOPPED, supervised.output
    finally:
        supervised.stop()
    assert complete_steps(run)[-1] == metrics(run)[-1]["step"] >= before
    outcome = "step finished and saved, exit code 75, no restart"
    record(Row("Preemption", "SIGTERM to one of 2 ranks", 0, time.time() - at, None, outcome))
    check_account(run, metrics(run)[-1]["time"] - began, waited)


def check_account(run: Path, wall: float, waited: float) -> None:
    """Every second of the run, from its first process to its last step, has gone somewhere; faults are no training."""
    account = json.loads(RunFolder(run).goodput.read_text())
    lost = account["lost"]
    assert account["trained"] + sum(lost.values()) == pytest.approx(wall, rel=0.01)
    assert lost["restart"] + lost["lost_work"] > 0.8 * waited
    # of the straggler nothing, if rank 0, whose account it is, was the slower one in each of the few steps
    assert min(account["trained"], lost["start"], lost["save_stall"], lost["data_wait"]) > 0
    assert lost["straggler"] >= 0


def wait_for_another_save(supervised: Supervised) -> None:
    # beyond the newest there is, which a test may have damaged
    newest = complete_steps(supervised.run)[-1]
    supervised.wait_for(lambda: complete_steps(supervised.run)[-1] > newest and supervised.step > newest)


def outlast(
    supervised: Supervised, row: Row, harm: Callable[[], object], told: str, heal: Callable[[], object]
) -> None:
    """A disk that takes nothing for a while: reported, no step lost, the last checkpoint whole, saved afterwards."""
    written, at = len(supervised.output), time.time()
    harm()
    supervised.wait_for(lambda: told in supervised.output[written:])
    told_at, shown = time.time(), supervised.output.count("  loss ")
    supervised.wait_for(lambda: supervised.output.count("  loss ") > shown)
    again = time.time()
    assert damage(RunFolder(supervised.run).checkpoint(complete_steps(supervised.run)[-1])) == []
    heal()
    wait_for_another_save(supervised)
    outcome = (
        "training continues, every failed save is reported, the last good checkpoint stays; saved again afterwards"
    )
    record(replace(row, seconds_until_reported=told_at - at, seconds_until_next_step=again - at, outcome=outcome))
