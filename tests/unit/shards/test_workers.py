"""Jobs over forked processes: each once, errors and deaths named, none left over."""

import os
import signal
import time
from collections.abc import Generator
from functools import partial
from pathlib import Path

import pytest

from pipeline.shards.manifest import ShardError
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


def note_and_wait(folder: Path, job: int) -> None:
    (folder / f"{job}-{os.getpid()}").touch()
    time.sleep(0.05)


def test_closing_the_results_ends_the_workers(tmp_path: Path) -> None:
    results = each_done(partial(note_and_wait, tmp_path), range(1000), 2)
    next(results)
    assert isinstance(results, Generator)
    results.close()
    pids = {int(p.name.split("-")[1]) for p in tmp_path.iterdir()}
    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
