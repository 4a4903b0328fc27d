"""Preflight checks of real hosts: all well, and each fault that one of them can have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.hosts import Hosts, why_not
from tests.end_to_end.launcher import DEEPSPEED
from tests.faces import ROOT
from tests.ports import free_port

REASON = why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

PARAMETERS = 10**6


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with Hosts(tmp_path_factory.mktemp("hosts") / "hosts", 2) as made:
        yield made


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A run's folder, and a folder of shards."""
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "manifest.json").write_text("{}")
    (shards / "00000.tar").write_bytes(b"faces")
    (tmp_path / "run").mkdir()
    return tmp_path / "run", shards


def preflight(hosts: Hosts, folders: tuple[Path, Path], *arguments: object) -> tuple[int, str, str]:
    """Exit code, the table, and standard error."""
    run, shards = folders
    variables = run.parent / "environment"
    variables.write_text("GLOO_SOCKET_IFNAME=eth0\nOMP_NUM_THREADS=1\n")
    plan = run.parent / "plan.json"
    sizes = {"gradient_bytes": 4 * PARAMETERS, "embedding_bytes": 4 * 32 * 8}
    checkpoint_bytes = 2 * 4 * (1000 * 8 + PARAMETERS)
    plan.write_text(json.dumps({"hosts": {"ranks": 2, "checkpoint_bytes": checkpoint_bytes, **sizes}}))
    command: list[object] = [sys.executable, "-m", "cluster.preflight", "--hostfile", hosts.hostfile(), "--run", run]
    command += ["--shards", shards, "--plan", plan, "--master-port", free_port()]
    command += ["--probe-seconds", 120, "--exchange-seconds", 600, *arguments]  # of a busy machine
    done = subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env=os.environ
        | {"PATH": f"{DEEPSPEED.parent}:{os.environ['PATH']}", "DS_ENV_FILE": str(variables)}
        | {"PDSH_SSH_ARGS_APPEND": hosts.ssh_arguments},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def states(table: str) -> dict[str, str]:
    """ok or FAILED, by the first words of each line."""
    rows = [line for line in table.splitlines() if not line.startswith(" ")]
    return {row[:12].strip(): row[12:].split()[0] for row in rows}


def test_hosts_that_are_fit(hosts: Hosts, folders: tuple[Path, Path]) -> None:
    code, table, error = preflight(hosts, folders, "--free-gib", 0.001)
    assert code == 0, table + error
    names = ["ssh", "project", "versions", "clocks", "GPUs", "shards", "run folder", "disk", "port", "bandwidth"]
    assert states(table) == dict.fromkeys(names, "ok")
    assert "all-reduce of the network's gradient" in table and "slowest link" in table
    assert not list(folders[0].iterdir()), "something was left in the run's folder"


def test_a_host_that_does_not_answer(hosts: Hosts, folders: tuple[Path, Path]) -> None:
    hosts.unplug(1)
    try:
        code, table, error = preflight(hosts, folders, "--free-gib", 0.001, "--probe-seconds", 30)
    finally:
        hosts.plug(1)
    assert code == 1 and states(table)["ssh"] == "FAILED" and "bandwidth" not in states(table)
    assert f"preflight: ssh: {hosts.addresses[1]}: got no answer within 30 s" in error


@pytest.mark.parametrize("what", ["project", "versions", "shards", "run folder"])
def test_a_host_that_has_something_else(hosts: Hosts, folders: tuple[Path, Path], tmp_path: Path, what: str) -> None:
    run, shards = folders
    empty, changed, other_set = tmp_path / "empty", tmp_path / "changed.py", tmp_path / "other"
    empty.mkdir()
    changed.write_text("# other code\n")
    other_set.mkdir()
    (other_set / "manifest.json").write_text('{"another": 1}')
    there = {
        "project": {ROOT / "cluster" / "preflight": empty},
        "versions": {ROOT / "cluster" / "ranks" / "watchdog.py": changed},
        "shards": {shards: other_set},
        "run folder": {run: empty},
    }
    with hosts.laid_over(1, there[what]):
        code, table, error = preflight(hosts, folders, "--free-gib", 0.001, "--no-exchange")
    assert code == 1, table + error
    assert [name for name, state in states(table).items() if state == "FAILED"] == [what]
    assert f"preflight: {what}: {hosts.addresses[1]}: " in error
    message = {
        "project": "No module named",
        "versions": "code: got",
        "shards": "0 tars",
        "run folder": "wanted what the first host wrote",
    }
    assert message[what] in error


def test_no_room_and_a_taken_port(hosts: Hosts, folders: tuple[Path, Path]) -> None:
    code, table, error = preflight(hosts, folders, "--free-gib", 10**7, "--master-port", 22, "--no-exchange")  # sshd's
    assert code == 1
    assert [name for name, state in states(table).items() if state == "FAILED"] == ["disk", "port"]
    assert "wanted 10,000,000.0" in error and f"{hosts.addresses[0]}: got port 22 taken" in table


def test_a_slow_link_is_named(hosts: Hosts, folders: tuple[Path, Path]) -> None:
    slow = ("tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "200mbit", "burst", "256kbit", "latency", "1s")
    hosts.on(1, *slow)
    try:
        code, table, error = preflight(hosts, folders, "--free-gib", 0.001, "--min-gb-per-second", 0.05)
    finally:
        hosts.on(1, "tc", "qdisc", "delete", "dev", "eth0", "root")
    assert code == 1, table
    first, second = hosts.addresses
    assert f"preflight: bandwidth: {second} → {first}: got 0.0" in error
