"""Jobs over forked processes: each once, errors and deaths named, none left over."""

import os
import signal
import time
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path

import pytest

from pipeline.shards.format.manifest import ShardError
from pipeline.shards.workers import each_done


def square(job: int) -> int:
    return job * job


def fail_at(where: int, job: int) -> int:
    if job == where:
        raise ShardError("job three failed")
    return job


def die_at(where: int, job: int) -> int:
    if job == where:
        os.kill(os.getpid(), signal.SIGKILL)
    return job


@pytest.mark.parametrize("workers", [1, 2, 5, 40])
def test_each_job_is_done_once(workers: int) -> None:
    assert sorted(each_done(square, range(20), workers)) == [i * i for i in range(20)]
    assert list(each_done(square, [], workers)) == []


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_of_a_job_is_raised_here(workers: int) -> None:
    with pytest.raises(ShardError, match="job three failed"):
        list(each_done(partial(fail_at, 3), range(20), workers))


def test_a_worker_that_dies_is_named_not_waited_for() -> None:
    with pytest.raises(ShardError, match="a worker died: got exit code -9, wanted 0"):
        list(each_done(partial(die_at, 3), range(20), 2))


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def pids_in(folder: Path) -> set[int]:
    return {int(path.name.split("-")[1]) for path in folder.iterdir()}


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def note_and_wait(folder: Path, job: int) -> None:
    (folder / f"{job}-{os.getpid()}").touch()
    time.sleep(0.05)


def hold(folder: Path, job: int) -> None:
    """The second is in the midst of something when the first is done."""
    if job == 0:
        until((folder / "held").exists)
        return
    (folder / "held").touch()
    try:
        time.sleep(60)
    finally:
        (folder / "held").unlink()


def test_a_worker_that_is_ended_leaves_nothing_half_done(tmp_path: Path) -> None:
    results = each_done(partial(hold, tmp_path), [0, 1], 2)
    next(results)
    assert isinstance(results, Generator)
    results.close()
    assert not (tmp_path / "held").exists()


def test_workers_whose_parent_was_killed_end(tmp_path: Path) -> None:
    parent = os.fork()
    if not parent:
        try:
            list(each_done(partial(note_and_wait, tmp_path), range(10_000), 2))
        finally:
            os._exit(0)
    until(lambda: len(pids_in(tmp_path)) == 2)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    try:
        until(lambda: not any(map(lives, pids_in(tmp_path))))
    finally:
        for pid in filter(lives, pids_in(tmp_path)):
            os.kill(pid, signal.SIGKILL)


def test_closing_the_results_ends_the_workers(tmp_path: Path) -> None:
    results = each_done(partial(note_and_wait, tmp_path), range(1000), 2)
    next(results)
    assert isinstance(results, Generator)
    results.close()
    pids = pids_in(tmp_path)
    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
