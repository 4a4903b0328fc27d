"""A folder has one holder, wherever it runs: refused while it lives, taken over when it is dead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cluster.lease import HeldError, Holder, last_holder, leased

ME = Holder("train me")
QUICK = {"beat_seconds": 0.05, "silent_seconds": 0.6}

HOLD = """
import sys
from pathlib import Path
from cluster.lease import HeldError, Holder, last_holder, leased
try:
    with leased(Path(sys.argv[1]), Holder("the other"), print):
        print("held", flush=True)
        sys.stdin.read()
except HeldError as error:
    print(error, flush=True)
"""


def no_loss(reason: str) -> None:
    raise AssertionError(reason)


def take(folder: Path, me: Holder = ME) -> None:
    with leased(folder, me, no_loss, **QUICK):
        pass


def claims(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def other(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder, or says why not, until its input ends."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process


def elsewhere(folder: Path, number: int = 1) -> Path:
    """The claim of a process on another machine."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{number:08d}.json"
    file.write_text(json.dumps(asdict(replace(ME, host="far", machine="another", pid=7))))
    return file


@contextmanager
def beating(file: Path) -> Iterator[None]:
    done = threading.Event()

    def beat() -> None:
        while not done.wait(0.05):
            with suppress(FileNotFoundError):
                os.utime(file)

    thread = threading.Thread(target=beat)
    thread.start()
    yield
    done.set()
    thread.join()


def test_the_second_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "claims"
    with other(folder) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        with pytest.raises(HeldError) as refused:
            take(folder)
        assert str(refused.value).startswith(f"{tmp_path / 'run'}: held by pid {process.pid} on {ME.host} since 2")
        assert str(refused.value).endswith(" (the other)") and "\n" not in str(refused.value)
        process.communicate("\n")
    take(folder)
    assert claims(folder) == []


def test_one_that_was_killed_is_followed_at_once_and_its_pid_may_be_used_again(tmp_path: Path) -> None:
    with other(tmp_path) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and its parent has not looked
        started = time.monotonic()
        take(tmp_path)
        assert time.monotonic() - started < QUICK["silent_seconds"]
    (tmp_path / "00000004.json").write_text(json.dumps(asdict(replace(ME, started=ME.started - 1))))
    take(tmp_path)
    assert claims(tmp_path) == []


def test_one_on_another_machine_lives_as_long_as_its_file_is_kept_fresh(tmp_path: Path) -> None:
    file = elsewhere(tmp_path)
    with beating(file), pytest.raises(HeldError, match="held by pid 7 on far since"):
        take(tmp_path)
    with leased(tmp_path, ME, no_loss, **QUICK):
        assert claims(tmp_path) == ["00000002.json"], "the dead one's claim stayed"


def test_a_claim_without_a_name_is_one(tmp_path: Path) -> None:
    file = tmp_path / "00000001.json"
    file.touch()
    with beating(file), pytest.raises(HeldError, match="held by a process that could not write its name"):
        take(tmp_path)
    take(tmp_path)


def test_one_that_slept_learns_that_it_has_lost_the_folder(tmp_path: Path) -> None:
    lost: list[str] = []
    with leased(tmp_path, ME, lost.append, **QUICK):
        (tmp_path / "00000001.json").unlink()
        newer = elsewhere(tmp_path, 2)
        for _ in range(200):
            if lost:
                break
            time.sleep(0.02)
    assert [reason.split(" since ")[0] for reason in lost] == [f"{tmp_path.parent}: taken over by pid 7 on far"]
    assert newer.exists(), "the claim of the one that took over"


def test_a_claim_that_only_vanished_is_made_again(tmp_path: Path) -> None:
    with leased(tmp_path, ME, no_loss, **QUICK):
        (tmp_path / "00000001.json").unlink()
        for _ in range(200):
            if claims(tmp_path):
                break
            time.sleep(0.02)
        with pytest.raises(HeldError):
            take(tmp_path)


def test_a_start_takes_over_from_an_earlier_one_of_its_supervisor_and_from_no_other(tmp_path: Path) -> None:
    me = replace(ME, mark="one", attempt=2)
    far = replace(me, host="far", machine="another", pid=2**22 + 1)  # a number that no process here can have
    file = elsewhere(tmp_path)
    file.write_text(json.dumps(asdict(far)))
    for other in (replace(me, mark="two", attempt=3), me):
        with beating(file), pytest.raises(HeldError):
            take(tmp_path, other)
    lost: list[float] = []
    file.unlink()
    with leased(tmp_path, me, lambda _: lost.append(time.monotonic()), **QUICK):
        file.write_text(json.dumps(asdict(far)))  # not known to be dead
        with leased(tmp_path, replace(me, attempt=3), no_loss, **QUICK):
            began = time.monotonic()
            assert claims(tmp_path) == ["00000002.json"]
        assert len(lost) == 1 and lost[0] < began, "the earlier one had learnt it before the later one began"


def test_of_many_that_find_the_same_one_dead_one_takes_over(tmp_path: Path) -> None:
    elsewhere(tmp_path)
    held, refused, ready = [], [], threading.Barrier(8)

    def compete() -> None:
        ready.wait()
        try:
            with leased(tmp_path, ME, no_loss, **QUICK):
                held.append(1)
                most.append(len(held))
                time.sleep(1.5)
                held.pop()
        except HeldError:
            refused.append(1)

    most: list[int] = []
    threads = [threading.Thread(target=compete) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and len(refused) == 7
    assert claims(tmp_path) == []


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("mine")
    take(tmp_path)
    assert claims(tmp_path) == ["notes.json"]


def test_a_look_names_who_holds_a_folder_or_died_there_and_takes_nothing(tmp_path: Path) -> None:
    assert last_holder(tmp_path / "claims") == (None, False)
    with leased(tmp_path, ME, no_loss, **QUICK):
        assert last_holder(tmp_path, beat_seconds=0.05) == (ME, True)
    assert last_holder(tmp_path) == (None, False)
    file = elsewhere(tmp_path)
    with beating(file):
        assert last_holder(tmp_path, beat_seconds=0.1) == (replace(ME, host="far", machine="another", pid=7), True)
    assert last_holder(tmp_path, beat_seconds=0.05)[1] is False
    file.write_text("")  # of a disk that was full
    assert last_holder(tmp_path, beat_seconds=0.05) == (None, False)
    assert claims(tmp_path) == [file.name]
