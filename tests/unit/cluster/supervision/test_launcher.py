"""A start over real agents: places of the ranks, what counts as its code, and what is done about those left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

from cluster.stop import EXIT_LOST, EXIT_STOPPED
from cluster.supervision.start import Start
from tests.faces import ROOT

# Supervises the script next to it, one start; two hosts, of which the command `ssh` makes two agents on this machine.
SUPERVISOR = """
import sys
from pathlib import Path
from cluster.supervision.launcher import Launcher
hosts = {"alpha": 1, "beta": 2}
report = lambda line: print(line, flush=True)
with Launcher(Path(sys.argv[1]), sys.argv[2:], [], ["OF_ALL=1"], hosts, 60, 0.3, report) as launcher:
    there = launcher.answering()
    print(sorted(there), launcher.run({host: hosts[host] for host in hosts if host in there}, 29500), flush=True)
    print(*map(launcher.why_absent, hosts.keys() - there), flush=True)
"""

RANK = """
import json, os, signal, sys, time
from pathlib import Path
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "SPHERESCALE_HOSTS", "OF_ALL")
place = Path(f"rank{os.environ['RANK']}")
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
place.write_text(json.dumps([os.environ[name] for name in names]))
rank = int(os.environ["RANK"])
exec(sys.argv[1])
"""

# Runs the command here, but for a host that does not answer; options come before the host, the command is the last.
SSH = """#!/bin/sh
for word; do host=$before; before=$word; done
case $host in "$LOST") echo "no route to $host" >&2; exit 255;; esac
exec sh -c "$word"
"""


def run(folder: Path, body: str, lost: str = "") -> subprocess.Popen[str]:
    (folder / "rank.py").write_text(RANK)
    (folder / "supervisor.py").write_text(SUPERVISOR)
    ssh = folder / "ssh"
    ssh.write_text(SSH)
    ssh.chmod(0o755)
    return subprocess.Popen(
        [sys.executable, folder / "supervisor.py", folder / "rank.py", body],
        cwd=folder,
        env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "LOST": lost},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[str, list[str]]:
    """The line with a supervisor's result, and the others."""
    lines = process.communicate(timeout=120)[0].splitlines()
    (result,) = (line for line in lines if line.startswith("["))
    return result, [line for line in lines if line not in (result, "")]


def test_every_rank_gets_its_place_whatever_each_host_has(tmp_path: Path) -> None:
    result, others = ended(run(tmp_path, "os.write(1, b'a  b\\n'); sys.exit(75 if rank else 0)"))
    assert result == "['alpha', 'beta'] 75"
    assert sorted(others) == ["alpha: a  b", "beta: a  b", "beta: a  b"]
    for rank, own in enumerate((["0", "1"], ["0", "2"], ["1", "2"])):
        got = json.loads((tmp_path / f"rank{rank}").read_text())
        assert got == [str(rank), "3", *own, "alpha", "alpha,beta,beta", "1"]


def test_ranks_that_go_on_after_one_has_failed_are_killed_and_do_not_count(tmp_path: Path) -> None:
    result, others = ended(run(tmp_path, "if rank == 1: sys.exit(74)\ntime.sleep(600)"))
    assert result == "['alpha', 'beta'] 74"
    assert others == ["rank 0 of beta ended with code 74"]


def test_a_host_that_does_not_answer_is_left_out(tmp_path: Path) -> None:
    assert ended(run(tmp_path, "sys.exit(0)", lost="alpha")) == ("['beta'] 0", ["no route to alpha"])


def test_the_first_signal_asks_and_the_second_ends_everything(tmp_path: Path) -> None:
    obeys = "time.sleep(600)"
    asked = run(tmp_path, obeys)
    until_up(tmp_path, asked)
    asked.send_signal(signal.SIGTERM)
    assert ended(asked)[0] == "['alpha', 'beta'] 75"
    deaf = run(tmp_path, "signal.signal(signal.SIGUSR1, signal.SIG_IGN); place.with_suffix('.deaf').touch(); " + obeys)
    until_up(tmp_path, deaf, ".deaf")
    deaf.send_signal(signal.SIGTERM)
    deaf.send_signal(signal.SIGINT)
    assert ended(deaf)[0].startswith("['alpha', 'beta'] ")


def until_up(folder: Path, process: subprocess.Popen[str], suffix: str = "") -> None:
    deadline = time.monotonic() + 120
    while not all((folder / f"rank{rank}{suffix}").exists() for rank in range(3)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


class Host:
    """A connection to a host: how its ranks have ended, whether it is lost, and what was asked of it."""

    def __init__(self, codes: dict[int, int], is_lost: bool = False) -> None:
        self.codes, self.is_lost = codes, is_lost
        self.asked: list[str] = []

    def signal(self, name: str) -> None:
        self.asked.append(name)

    def close(self) -> None:
        self.asked.append("close")


def start_of(ranks: dict[str, int], **hosts: Host) -> Start:
    return Start(cast(Any, hosts), ranks)


def test_of_a_lost_host_the_ranks_that_had_not_ended_are_lost_and_none_has_failed() -> None:
    alpha = Host({0: EXIT_STOPPED})
    start = start_of({"alpha": 2, "beta": 3}, alpha=alpha, beta=Host({1: 74}, is_lost=True))
    ended = {("alpha", 0): EXIT_STOPPED, ("beta", 0): EXIT_LOST, ("beta", 1): 74, ("beta", 2): EXIT_LOST}
    assert (start.codes, start.failed, start.left) == (ended, "", True)
    alpha.codes[1] = -signal.SIGSEGV
    assert (start.failed, start.left) == ("rank 1 of alpha was killed by SIGSEGV", False)
    alpha.codes[1] = 0
    assert start_of({"alpha": 2, "beta": 1}, alpha=alpha, beta=Host({}, is_lost=True)).code == EXIT_LOST


def test_ranks_that_are_killed_here_do_not_count_and_agents_that_cannot_kill_them_are_left() -> None:
    alpha, beta = Host({0: EXIT_STOPPED}), Host({0: EXIT_STOPPED})
    start = start_of({"alpha": 2, "beta": 1}, alpha=alpha, beta=beta)
    start.kill()
    alpha.codes[1] = -signal.SIGKILL
    assert (start.code, alpha.asked) == (EXIT_STOPPED, ["SIGKILL"])
    alpha.codes.clear()
    start.cut_off()
    assert (alpha.asked, beta.asked) == (["SIGKILL", "close"], ["SIGKILL"])
    nobody = start_of({"alpha": 1}, alpha=Host({}))
    nobody.kill()
    assert nobody.code == EXIT_LOST
