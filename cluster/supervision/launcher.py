"""Starts the ranks of a run through an agent on each host, passes signals on to them, and ends what is left of a start.

DeepSpeed's launcher passes on no signal that ranks could obey, and waits 30 seconds for a rank that does not end. The
agents stay from start to start, with the imports done (`host_agent`). A host that is lost is connected to again in the
background, and takes part in the next start.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType

from cluster.marks import AGENT_VARIABLE, START_VARIABLE
from cluster.stop import stop_signals
from cluster.supervision.connection import Connection
from cluster.supervision.hosts import HERE, KEEP_ALIVE, SSH_ARGUMENTS
from cluster.supervision.start import Start

_POLL_SECONDS = 0.1
_GREETING_SECONDS = 1.0
_RETRY_SECONDS = 1.0
# Variables of this process that every host gets, as the `deepspeed` command passes them on.
_PASSED_ON = ("NCCL", "PYTHON", "MLFLOW", "UCX", "MV2")


class Launcher:
    """Starts a script on many hosts, again and again, and handles the signals sent to this process. In the main thread.

    The first signal asks the ranks to stop: they finish their step, save and end. The second kills everything at once.
    A context: when it is left nothing that was started is running, on the hosts that can be reached.

    Args:
        script, arguments: what every rank runs.
        modules: that agents import before.
        exports: ``NAME=VALUE``, set on every host.
        hosts: where agents are wanted; `cluster.supervision.hosts.HERE` alone needs no ssh.
        patience_seconds: how long a host may take to answer; one that is silent for as long is lost.
        end_seconds: how long ranks may go on after one has failed; then they are killed.
        report: takes a line for the user.
    """

    def __init__(
        self,
        script: Path,
        arguments: Sequence[str],
        modules: Iterable[str],
        exports: Sequence[str],
        hosts: Iterable[str],
        patience_seconds: float,
        end_seconds: float,
        report: Callable[[str], object],
    ) -> None:
        agent = "cluster.supervision.host_agent"
        self._agent = [sys.executable, "-m", agent, "--import", ",".join(modules), str(script)]
        self._agent += arguments
        self._mark, self._exports = uuid.uuid4().hex, list(exports)
        self._patience, self._end_seconds, self._report = patience_seconds, end_seconds, report
        self._hosts: dict[str, Connection | None] = dict.fromkeys(hosts)
        self._awaited: set[str] = set()
        self._said: dict[str, str] = {}
        self._greeted_at = 0.0
        self._signals = self._attempt = 0
        for number in stop_signals():
            signal.signal(number, self._count_signal)

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *_: object) -> None:
        connections = [connection for connection in self._hosts.values() if connection is not None]
        for connection in connections:
            connection.hang_up()  # all at once
        for connection in connections:
            connection.close(self._patience if connection.is_there else 0)

    @property
    def stopping(self) -> bool:
        """Whether this process was asked to stop."""
        return self._signals > 0

    def answering(self) -> set[str]:
        """The hosts on which ranks can be started. Waits for those that were just lost, or never yet tried."""
        while True:
            self._keep_connected()
            if self.stopping or not self._awaited:
                return {host for host, connection in self._hosts.items() if connection and connection.is_there}
            time.sleep(_POLL_SECONDS)

    def why_absent(self, host: str) -> str:
        """What the last attempt to reach a host said; empty if nothing."""
        return self._said.get(host, "")

    def sleep(self, seconds: float) -> None:
        """Wait, or until this process is asked to stop."""
        until = time.monotonic() + seconds
        while not self.stopping and time.monotonic() < until:
            self._keep_connected()
            time.sleep(_POLL_SECONDS)

    def run(self, ranks: Mapping[str, int], port: int) -> int | None:
        """Run once, to the end, with this many ranks on each host; the exit code, or None if already asked to stop.

        It is the most severe of those codes with which ranks ended by themselves (`cluster.start_ranks.most_severe`);
        ranks of a host that is lost count as lost.
        """
        if self.stopping:
            return None
        start = Start({host: self._connected(host) for host in ranks}, ranks)
        self._attempt += 1
        start.begin(next(iter(ranks)), port, self._attempt)
        asked, kill_at, leave_at = 0, float("inf"), float("inf")
        while start.left and time.monotonic() < leave_at:
            self._keep_connected()
            if self._signals > asked:
                asked = self._signals
                start.signal("SIGUSR1")
                if asked > 1:
                    kill_at = min(kill_at, time.monotonic())
            if kill_at == float("inf") and (failed := start.failed):
                self._report(failed)
                kill_at = time.monotonic() + self._end_seconds
            if time.monotonic() >= kill_at and leave_at == float("inf"):
                start.kill()
                leave_at = time.monotonic() + self._patience
            time.sleep(_POLL_SECONDS)
        if kill_at == float("inf") and start.failed:
            self._report(start.failed)  # all at once
        start.cut_off()
        time.sleep(_POLL_SECONDS)  # last words come by another way than codes
        return start.code

    def _connected(self, host: str) -> Connection:
        connection = self._hosts[host]
        assert connection is not None, f"{host}: got no connection, wanted one of `answering`"
        return connection

    def _keep_connected(self) -> None:
        """Connect to hosts that are not there, again and again, and greet the others."""
        now = time.monotonic()
        greets = now - self._greeted_at > _GREETING_SECONDS
        if greets:
            self._greeted_at = now
        for host, connection in self._hosts.items():
            if connection is None:
                self._awaited.add(host)
                self._connect(host)
                continue
            age = now - connection.begun_at
            if connection.is_there:
                self._awaited.discard(host)
                if greets:
                    connection.greet()
            elif connection.is_lost or age > self._patience:
                if connection.has_answered:
                    self._awaited.add(host)  # it may be back at once
                else:
                    self._awaited.discard(host)
                    self._said[host] = connection.said or self._said.get(host, "")
                if age > _RETRY_SECONDS:
                    connection.close()
                    self._connect(host)

    def _connect(self, host: str) -> None:
        own = [f"{START_VARIABLE}={self._mark}", f"{AGENT_VARIABLE}={self._mark} {host}", *self._exports]
        if host == HERE:
            environment = os.environ | dict(one.split("=", 1) for one in own)
            self._hosts[host] = Connection(self._agent, environment, prefix=None)
            return
        probe = max(1, int(self._patience / 4))  # three without an answer, and the host is lost
        options = f"-o ConnectTimeout={max(1, int(self._patience))} -o ServerAliveInterval={probe}"
        ssh = ["ssh", *shlex.split(f"{options} {KEEP_ALIVE} {os.environ.get(SSH_ARGUMENTS, '')}"), host]
        passed_on = [f"{name}={value}" for name, value in os.environ.items() if name.startswith(_PASSED_ON)]
        agent = shlex.join(["env", *passed_on, *own, *self._agent])
        # a folder that is not there is for the ranks to refuse
        command = [*ssh, f"cd {shlex.quote(str(Path.cwd()))}; exec {agent}"]
        self._hosts[host] = Connection(command, os.environ, prefix=f"{host}: ")

    def _count_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._signals += 1
