"""Starts a run through `deepspeed`, on this machine or over ssh, signals its processes, and limits its restarts.

DeepSpeed's launcher passes on no signal that ranks could obey: on one machine it dies and leaves them running, over ssh
it ends them within 30 seconds, saved or not. So every process of a start carries a mark in its environment, by which it
is found on its host and sent the signal directly. One rank that receives it is enough: the ranks stop together.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from cluster.hosts import HERE, KEEP_ALIVE, SSH_ARGUMENTS, answers
from cluster.marks import START_VARIABLE, signal_marked
from cluster.stop import stop_signals

_POLL_SECONDS = 0.2


class Launcher:
    """Starts a script under `deepspeed`, and handles the signals sent to this process. In the main thread only.

    The first signal asks the ranks to stop: they finish their step, save and end. The second kills everything at once.

    Args:
        script, arguments: what every rank runs.
        exports: ``NAME=VALUE``, set on every host.
        by_ssh: through ssh and pdsh, even to a single host; otherwise on this machine.
        patience_seconds: how long a host may take to answer.
    """

    def __init__(
        self, script: Path, arguments: list[str], exports: list[str], *, by_ssh: bool, patience_seconds: float
    ) -> None:
        self._script, self._arguments, self._exports = script, arguments, exports
        self._by_ssh, self._patience = by_ssh, patience_seconds
        self._mark = f"{START_VARIABLE}={uuid.uuid4().hex}"
        self._signals = 0
        for number in stop_signals():
            signal.signal(number, self._count_signal)

    @property
    def stopping(self) -> bool:
        """Whether this process was asked to stop."""
        return self._signals > 0

    def answering(self, hosts: Iterable[str]) -> set[str]:
        """Those of `hosts` on which a command can be run."""
        return set(answers(hosts, "true", self._patience, self._by_ssh))

    def sleep(self, seconds: float) -> None:
        """Wait, or until this process is asked to stop."""
        until = time.monotonic() + seconds
        while not self.stopping and time.monotonic() < until:
            time.sleep(0.1)

    def run(self, ranks: Mapping[str, int], port: int) -> int | None:
        """Run once, to the end, with this many ranks on each host; the exit code, or None if already asked to stop.

        0 does not prove success: deepspeed also returns it for a pdsh that was killed.
        """
        if self.stopping:
            return None
        self._kill(ranks)  # a host that was cut off may still run its ranks of an earlier start
        with tempfile.TemporaryDirectory() as folder:
            command, environment = self._command(ranks, port, Path(folder))
            # In a session of its own: Ctrl-C reaches this process alone, which signals the ranks, once.
            process = subprocess.Popen(command, env=environment, start_new_session=True)
            signalled: set[str] = set()
            while True:
                try:
                    return process.wait(timeout=_POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    pass
                if self._signals > 1:
                    self._kill(ranks)
                    os.killpg(process.pid, signal.SIGKILL)
                elif self._signals:
                    # Repeated until there are ranks: they may be about to start. Receiving it twice does no harm.
                    signalled |= self._send("USR1", ranks.keys() - signalled, ranks_only=True)

    def _kill(self, hosts: Iterable[str]) -> None:
        """Kill every process on these hosts that this launcher ever started."""
        self._send("KILL", hosts)

    def _send(self, name: str, hosts: Iterable[str], *, ranks_only: bool = False) -> set[str]:
        """Send a signal to the marked processes; the hosts that had any."""
        command = signal_marked(name, self._mark, ranks_only=ranks_only)
        printed = answers(hosts, command, self._patience, self._by_ssh)
        return {host for host, pids in printed.items() if pids.strip()}

    def _command(self, ranks: Mapping[str, int], port: int, folder: Path) -> tuple[list[str], dict[str, str]]:
        command = [str(Path(sys.executable).with_name("deepspeed")), "--master_port", str(port)]
        environment = dict(os.environ)
        exports = [self._mark, *self._exports]
        if self._by_ssh:
            hostfile, variables = folder / "hosts", folder / "environment"
            hostfile.write_text("".join(f"{host} slots={count}\n" for host, count in ranks.items()))
            variables.write_text("\n".join(exports) + "\n")
            command += ["--hostfile", str(hostfile), "--master_addr", next(iter(ranks))]
            command += ["--force_multi", "--no_ssh_check"]  # the only host left may not be this one
            environment["DS_ENV_FILE"] = str(variables)
            environment[SSH_ARGUMENTS] = f"{KEEP_ALIVE} {environment.get(SSH_ARGUMENTS, '')}"
        else:
            command += ["--num_gpus", str(ranks[HERE])]
            environment |= dict(export.split("=", 1) for export in exports)
        return [*command, str(self._script), *self._arguments], environment

    def _count_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._signals += 1


class GiveUpError(RuntimeError):
    """Another start would fail as well; the message gives the reason."""


@dataclass
class Restarts:
    """Counts failures, and computes the wait before the next start.

    Attributes:
        limit: restarts in all.
        same_step: give up after this many failures in a row at the same step.
        first_wait_seconds, longest_wait_seconds: the wait doubles, from one to the other, while no step is gained.
    """

    limit: int = 50
    same_step: int = 3
    first_wait_seconds: float = 5.0
    longest_wait_seconds: float = 300.0

    def __post_init__(self) -> None:
        self._count, self._in_a_row, self._last_step, self._furthest = 0, 0, -1, -1
        self._without_gain = 0

    def failed_at(self, step: int) -> float:
        """Seconds to wait before starting again, after a failure when `step` steps had been done.

        Raises:
            GiveUpError: if the limits are reached.
        """
        self._count += 1
        self._in_a_row = self._in_a_row + 1 if step == self._last_step else 1
        self._without_gain = 0 if step > self._furthest else self._without_gain + 1
        self._last_step, self._furthest = step, max(step, self._furthest)
        if self._in_a_row >= self.same_step:
            raise GiveUpError(f"{self._in_a_row} failures in a row at step {step}: starting again does not help")
        if self._count > self.limit:
            raise GiveUpError(f"{self._count} failures, {self.limit} restarts allowed")
        return self._wait()

    def unsaved(self) -> float:
        """Seconds to wait after a start that could write nothing: no failure, as room may come at any time."""
        self._without_gain += 1
        return self._wait()

    def _wait(self) -> float:
        doublings = min(self._without_gain, 60)  # a disk may stay full for weeks
        return min(self.longest_wait_seconds, self.first_wait_seconds * 2.0**doublings)
