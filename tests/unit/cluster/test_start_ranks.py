"""The ranks of one host: their environment, the signals passed on to them, and the most severe exit code."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.ranks.topology import Topology
from cluster.start_ranks import environment_of, most_severe
from tests.faces import ROOT


def test_the_ranks_of_all_hosts_are_numbered_once() -> None:
    places = [environment_of(rank, host, 3, 4, "node", 29500) for host in range(3) for rank in range(4)]
    assert [Topology.from_environment(place) for place in places] == [
        Topology(number, 12, number % 4, 4) for number in range(12)
    ]
    assert {(place["MASTER_ADDR"], place["MASTER_PORT"]) for place in places} == {("node", "29500")}


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ([0, 0], 0),
        ([75, 0], 75),
        ([75, 69], 69),
        ([69, -9, 69], 137),
        ([69, 1], 1),
        ([65, 69, 1], 65),
        ([69, 2], 2),
    ],
)
def test_the_most_severe_exit_code_counts(codes: list[int], code: int) -> None:
    assert most_severe(codes) == most_severe(codes[::-1]) == code


def test_a_signal_reaches_each_rank_once_and_all_are_waited_for(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, sys, time\n"
        "heard = []\n"
        "signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))\n"
        "place = sys.argv[1] + os.environ['LOCAL_RANK']\n"
        "open(place + '.up', 'w').close()\n"
        "while not heard:\n    time.sleep(0.05)\n"
        "time.sleep(0.2)\n"
        "open(place + '.heard', 'w').write(f'{len(heard)}')\n"
        "sys.exit(75)\n"
    )
    command = [sys.executable, "-m", "cluster.start_ranks", "--host=1", "--hosts=2", "--ranks=2", "--master-addr=here"]
    process = subprocess.Popen([*command, script, f"{tmp_path}/rank"], cwd=ROOT)
    while not all((tmp_path / f"rank{rank}.up").exists() for rank in range(2)):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 75
    assert [(tmp_path / f"rank{rank}.heard").read_text() for rank in range(2)] == ["1", "1"]


INTERRUPTED = """
import signal, subprocess, sys
from cluster import start_ranks

rank = '''
import signal, sys, time
signal.signal(signal.SIGUSR1, lambda number, frame: sys.exit(75))
print(flush=True)
time.sleep(60)
'''

started = []

class Interrupted(subprocess.Popen):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, stdout=subprocess.PIPE, **kwargs)
        started.append(self)
        self.stdout.readline()
        signal.raise_signal(signal.SIGUSR1)

subprocess.Popen = Interrupted
class Early(list):
    def __iter__(self):
        signal.raise_signal(signal.SIGUSR1)
        return super().__iter__()

environments = Early([{}]) if sys.argv[1] == "before" else [{}, {}]
code = start_ranks.start([sys.executable, "-c", rank], environments)
print(code, len(started))
"""


@pytest.mark.parametrize(("moment", "ranks"), [("during", 1), ("before", 0)])
def test_a_signal_during_the_start_of_a_rank_reaches_it_and_no_other_is_started(moment: str, ranks: int) -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, moment], cwd=ROOT, check=False, stdout=subprocess.PIPE)
    assert done.stdout.decode().split() == ["75", str(ranks)]


@pytest.mark.parametrize("host", [2, -1])
def test_a_host_beyond_the_last_is_refused(host: int) -> None:
    command = [
        sys.executable,
        "-m",
        "cluster.start_ranks",
        f"--host={host}",
        "--hosts=2",
        "--ranks=1",
        "--master-addr=x",
        "y",
    ]
    done = subprocess.run([*command, "script.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and re.search(f"--host: got {host}, wanted 0 <= host < 2", done.stderr)
