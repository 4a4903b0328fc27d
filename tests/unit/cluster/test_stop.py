"""Stop requests; and a command whose reader ends does so silently, while any other broken pipe is reported."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

STAGES = Path(__file__).parents[3] / "stages"

ENDLESS = """
import itertools
from cluster.stop import exit_with
def main():
    for number in itertools.count():
        print(number)
exit_with(main)
"""

ANOTHER_PIPE = """
import os
from cluster.stop import exit_with
def main():
    reader, writer = os.pipe()
    os.close(reader)
    os.write(writer, b"without a reader")
exit_with(main)
"""


def piped(*command: str | Path) -> tuple[str, str, int]:
    """What comes of `command | head -n 1`: the line, standard error, and the command's own exit code."""
    writer = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with writer:
        assert writer.stdout and writer.stderr
        line = writer.stdout.readline()
        writer.stdout.close()
        error = writer.stderr.read()
    return line, error, writer.returncode


def test_endless_output_ends_with_its_reader() -> None:
    assert piped(sys.executable, "-c", ENDLESS) == ("0\n", "", 141)


@pytest.mark.parametrize("stage", ["train.py", "shard.py"])
def test_the_help_of_a_stage_may_be_cut(stage: str) -> None:
    command = f"'{sys.executable}' '{STAGES / stage}' --help | true"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_a_broken_pipe_that_is_not_the_readers_is_reported() -> None:
    line, error, code = piped(sys.executable, "-c", ANOTHER_PIPE)
    assert (line, code) == ("", 1)
    assert "BrokenPipeError" in error.splitlines()[-1]


def test_exit_codes_pass() -> None:
    for code in (0, 3, None):
        script = f"from cluster.stop import exit_with; exit_with(lambda: {code})"
        assert subprocess.run([sys.executable, "-c", script], check=False).returncode == (code or 0)


SIGNALLED = """
import signal
from cluster.stop import StopRequest
stop = StopRequest()
stop.defer()
for name in {names}:
    signal.raise_signal(signal.Signals[name])
print(stop.asked or "nothing")
"""


def asked_by(*names: str, before: str = "") -> tuple[str, int]:
    """What asked a process to stop that was sent these signals, one after the other, and its exit code."""
    done = subprocess.run(
        [sys.executable, "-c", before + SIGNALLED.format(names=names)], stdout=subprocess.PIPE, text=True, check=False
    )
    return done.stdout.strip(), done.returncode


@pytest.mark.parametrize(
    "names", [(), ("SIGUSR1",) * 3, ("SIGHUP", "SIGHUP"), ("SIGINT", "SIGTERM"), ("SIGTERM", "SIGHUP", "SIGUSR1")]
)
def test_signals_that_may_come_together_ask_once(names: tuple[str, ...]) -> None:
    assert asked_by(*names) == (names[-1] if names else "nothing", 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_one_ends_at_once(number: signal.Signals) -> None:
    assert asked_by(number.name, number.name) == ("", -number)


def test_under_nohup_a_closed_terminal_does_not_ask() -> None:
    before = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    assert asked_by("SIGHUP", before=before) == ("nothing", 0)


def test_a_standard_error_that_takes_nothing_ends_nothing() -> None:
    script = "from cluster.stop import leave, tell; tell('why'); leave(75)"
    with Path("/dev/full").open("w") as full:
        assert subprocess.run([sys.executable, "-c", script], stderr=full, check=False).returncode == 75
