"""Two real hosts on which a run cannot start: every host says why, in time; and a supervisor that is asked to stop."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

import pytest

from cluster.stop import EXIT_LOST, EXIT_REFUSED, EXIT_STOPPED
from pipeline.run.checkpoint import complete_steps
from tests.end_to_end.hosts import Hosts, why_not
from tests.end_to_end.launcher import DEEPSPEED, TRAIN, metrics, write_recipe
from tests.end_to_end.supervised import Supervised, is_rank
from tests.faces import ROOT, write_shards
from tests.fault_table import Row, record
from tests.ports import free_port

REASON = why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

SECONDS = 5
NEVER = 100_000


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("set"), identities=7, images=6)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with Hosts(tmp_path_factory.mktemp("hosts"), 2) as made:
        yield made


@dataclass(frozen=True)
class Line:
    """A line of output, and the seconds since the command when it came."""

    seconds: float
    text: str


@dataclass(frozen=True)
class Start:
    """A start by `deepspeed` on both hosts that failed: its exit code, what it said, and when it had ended."""

    code: int
    lines: list[Line]
    seconds: float

    @property
    def output(self) -> str:
        return "".join(line.text for line in self.lines)

    def told(self, *ranks: int) -> list[str]:
        """What train.py said on the hosts of `ranks` after it came to meet the others, one rank a host."""
        lines = [line for line in self.lines if "train.py on host" in line.text and ": meeting: " not in line.text]
        assert len(lines) == len(ranks), self.output
        return [next(x.text for x in lines if f"train.py on host{rank + 1}: " in x.text).strip() for rank in ranks]

    def seconds_until_told(self) -> float:
        """From a host's coming to the meeting until it said why there is none; of the host that took longest."""
        waits = []
        for host in ("host1", "host2"):
            own = [line for line in self.lines if f"train.py on {host}: " in line.text]
            if len(own) == 2:  # a rank that refuses says so at once, and goes to the meeting for the others' sake
                waits.append(own[1].seconds - own[0].seconds)
        assert waits, self.output
        return max(waits)

    def record(self, fault: str, done: str, outcome: str) -> None:
        done = f"{done} (timeout_seconds {SECONDS})"
        at = [line.seconds for line in self.lines if "train.py on host" in line.text]
        around = f"{min(at):.1f} s before the first host's first word, {self.seconds - max(at):.1f} s after the last"
        record(Row(fault, done, None, self.seconds_until_told(), None, f"{outcome} ({around})"))


def start(folder: Path, hosts: Hosts, recipe: Path, **launcher: object) -> Start:
    """`deepspeed` on both hosts, as one starts it by hand, until it ends."""
    options = {"master_addr": hosts.addresses[0], "master_port": free_port()} | launcher
    command = [DEEPSPEED, "--hostfile", hosts.hostfile(), "--no_ssh_check"]
    command += [word for name, value in options.items() for word in (f"--{name}", value)]
    command += [TRAIN, "--recipe", recipe, "--run", folder / "run", "--set", f"timeout_seconds={SECONDS}"]
    (folder / ".deepspeed_env").write_text("GLOO_SOCKET_IFNAME=eth0\nOMP_NUM_THREADS=1\n")
    at = time.monotonic()
    with subprocess.Popen(
        list(map(str, command)),
        cwd=folder,
        env=os.environ
        | {"PATH": f"{DEEPSPEED.parent}:{os.environ['PATH']}", "PDSH_SSH_ARGS_APPEND": hosts.ssh_arguments},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        end = Timer(120, os.killpg, (process.pid, signal.SIGKILL))
        end.start()
        try:
            assert process.stdout is not None
            lines = [Line(time.monotonic() - at, text) for text in process.stdout]
            return Start(process.wait(), lines, time.monotonic() - at)
        finally:
            end.cancel()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_another_recipe_and_other_code_on_one_host(hosts: Hosts, shards: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", shards, NEVER)
    code_file = ROOT / "cluster" / "__init__.py"
    other_recipe, other_code = tmp_path / "other.yaml", tmp_path / "other.py"
    other_recipe.write_text(recipe.read_text().replace("learning_rate: 0.02", "learning_rate: 0.03"))
    other_code.write_text(code_file.read_text() + "# a version of yesterday\n")
    with hosts.laid_over(1, {recipe: other_recipe, code_file: other_code}):
        failed = start(tmp_path, hosts, recipe)
    assert failed.code == EXIT_REFUSED, failed.output
    for line in failed.told(0, 1):
        assert "rank 1 on host2: code: got " in line
        assert line.endswith(
            "rank 1 on host2: recipe optimizer.learning_rate: got 0.03, wanted 0.02 as on rank 0 (host1)"
        )
    assert complete_steps(tmp_path / "run") == []
    failed.record(
        "Recipe or code differs", "another file on one of 2 hosts", "both hosts end and name host, key, values"
    )


def test_another_manifest_on_one_host(hosts: Hosts, shards: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", shards, NEVER)
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["made"]["seed"] = 17
    other = tmp_path / "manifest.json"
    other.write_text(json.dumps(manifest))
    with hosts.laid_over(1, {shards / "manifest.json": other}):
        failed = start(tmp_path, hosts, recipe)
    assert failed.code == EXIT_REFUSED, failed.output
    for line in failed.told(0, 1):
        assert "rank 1 on host2: shards' manifest: got " in line
        assert line.endswith("as on rank 0 (host1)")
    failed.record("Manifest differs", "other shards on one of 2 hosts", "both hosts end and name host and digests")


def test_a_host_that_does_not_see_the_recipe(hosts: Hosts, shards: Path, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "not mounted").mkdir()
    recipe = write_recipe(tmp_path / "shared" / "recipe.yaml", shards, NEVER)
    with hosts.laid_over(1, {tmp_path / "shared": tmp_path / "not mounted"}):
        failed = start(tmp_path, hosts, recipe)
    assert failed.code == EXIT_REFUSED, failed.output
    first, second = failed.told(0, 1)
    assert "train.py on host1: rank 1 on host2 refuses: " in first
    assert "recipe.yaml: No such file or directory" in first
    assert "recipe.yaml: No such file or directory" in second
    done = "the recipe's folder empty on one of 2 hosts"
    failed.record("Folder not mounted", done, "both hosts end and name host and file")


def test_a_host_that_cannot_be_reached(hosts: Hosts, shards: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", shards, NEVER)
    hosts.unplug(1)
    try:
        failed = start(tmp_path, hosts, recipe)
    finally:
        hosts.plug(1)
    assert failed.code, failed.output
    (line,) = failed.told(0)
    assert f"did not join within 5 s: rank 1 ({hosts.addresses[1]}); is that host up" in line
    failed.record("Host never comes", "network of one of 2 hosts taken away", "the other host ends and names it")


def test_a_master_port_that_is_taken(hosts: Hosts, shards: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", shards, NEVER)
    # sshd's own
    failed = start(tmp_path, hosts, recipe, master_port=22)
    assert failed.code == EXIT_LOST, failed.output
    first, second = failed.told(0, 1)
    assert f"cannot open the store at {hosts.addresses[0]}:22: " in first
    assert "choose another with --master_port" in first
    assert f"rank 0 does not answer at {hosts.addresses[0]}:22 within 5 s" in second
    failed.record(
        "Port taken", "another program listens on the master port", "both hosts end and name address and port"
    )


def test_a_master_address_of_nobody(hosts: Hosts, shards: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", shards, NEVER)
    nobody = hosts.addresses[0].rpartition(".")[0] + ".99"
    failed = start(tmp_path, hosts, recipe, master_addr=nobody)
    assert failed.code == EXIT_LOST, failed.output
    for line in failed.told(0, 1):
        assert nobody in line and "--master_addr" in line
    failed.record("Wrong master address", "an address of nobody", "both hosts end and name it")


@pytest.fixture
def supervised(hosts: Hosts, shards: Path, tmp_path: Path) -> Iterator[Supervised]:
    where: list[str | Path] = ["--hostfile", hosts.hostfile(), "--export", "GLOO_SOCKET_IFNAME=eth0"]
    recipe = write_recipe(tmp_path / "recipe.yaml", shards, NEVER)
    made = Supervised(tmp_path, where, recipe, tmp_path / "run", {"PDSH_SSH_ARGS_APPEND": hosts.ssh_arguments})
    yield made
    made.stop()


def test_a_supervisor_that_is_asked_to_stop_stops_every_host(hosts: Hosts, supervised: Supervised) -> None:
    supervised.wait_for(lambda: supervised.step >= 3)
    at = time.time()
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.end() == EXIT_STOPPED, supervised.output
    assert complete_steps(supervised.run)[-1] == metrics(supervised.run)[-1]["step"]
    assert "saved; the same command resumes it" in supervised.output
    assert training(hosts) == []
    outcome = "step finished and saved on both hosts, exit code 75, nothing left running"
    record(Row("Supervisor stopped", "SIGTERM to the supervisor of 2 hosts", 0, time.time() - at, None, outcome))


def test_a_second_signal_to_a_supervisor_ends_every_host_at_once(hosts: Hosts, supervised: Supervised) -> None:
    supervised.wait_for(lambda: supervised.step >= 3)
    os.kill(ranks(hosts, 1)[0], signal.SIGSTOP)  # so that no step ends, and the first signal is not obeyed
    supervised.process.send_signal(signal.SIGTERM)
    supervised.process.send_signal(signal.SIGINT)
    assert supervised.end() == EXIT_STOPPED, supervised.output
    assert training(hosts) == []


def ranks(hosts: Hosts, number: int) -> list[int]:
    return [pid for pid in hosts.pids(number) if is_rank(pid)]


def training(hosts: Hosts) -> list[int]:
    """Processes of training on any host, launchers included, once those that are just ending have had time to."""
    deadline = time.monotonic() + 60
    while True:
        left = [pid for number in (0, 1) for pid in hosts.pids(number) if "train.py" in command_of(pid)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
