"""A start over real agents: places of the ranks, what counts as its code, and what is done about those left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.faces import ROOT

# Supervises the script next to it, one start; two hosts, of which the command `ssh` makes two agents on this machine.
SUPERVISOR = """
import sys
from pathlib import Path
from cluster.launcher import Launcher
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
