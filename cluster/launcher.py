"""Starts of a run through `deepspeed`, on this machine or over ssh, and how their processes are reached.

DeepSpeed's launcher passes no signal on that ranks could obey: on one machine it dies and leaves them, over ssh it ends
them within 30 seconds, saved or not. So every process of a start carries a mark in its environment, by which it is
found on its host and sent the signal itself. One rank that hears it is enough: they stop together.
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
from pathlib import Path
from types import FrameType

from cluster.hosts import HERE, KEEP_ALIVE, SSH_ARGUMENTS, answers
from cluster.marks import tell
from cluster.stop import signals_to_hear

_POLL_SECONDS = 0.2


class Launcher:
    """Starts a script under `deepspeed`, and hears the signals that this process is sent. In the main thread only.

    The first signal asks the ranks to stop: they finish their step, save and end. The second ends everything at once.

    Args:
        script, arguments: what every rank runs.
        exports: ``NAME=VALUE``, set on every host.
        by_ssh: through ssh and pdsh, also where there is one host; otherwise on this machine.
        patience_seconds: for a host to answer.
    """

    def __init__(
        self, script: Path, arguments: list[str], exports: list[str], *, by_ssh: bool, patience_seconds: float
    ) -> None:
        self._script, self._arguments, self._exports = script, arguments, exports
        self._by_ssh, self._patience = by_ssh, patience_seconds
        self._mark = f"SPHERESCALE_START={uuid.uuid4().hex}"
        self._signals = 0
        for number in signals_to_hear():
            signal.signal(number, self._hear)

    @property
    def stopping(self) -> bool:
        """Whether this process was asked to stop."""
        return self._signals > 0

    def answering(self, hosts: Iterable[str]) -> set[str]:
        """Those of `hosts` on which a command can be run."""
        return set(answers(hosts, "true", self._patience, self._by_ssh))

    def sleep(self, seconds: float) -> None:
        """Wait, but not for longer than until asked to stop."""
        until = time.monotonic() + seconds
        while not self.stopping and time.monotonic() < until:
            time.sleep(0.1)

    def run(self, ranks: Mapping[str, int], port: int) -> int | None:
        """One start, to its end, on so many ranks of each host; its exit code. None when asked to stop already.

        (0 says little: deepspeed returns it for a pdsh that was killed.)
        """
        if self.stopping:
            return None
        self._sweep(ranks)  # a host that was cut off may still run its part of an earlier start
        with tempfile.TemporaryDirectory() as folder:
            command, environment = self._command(ranks, port, Path(folder))
            # In a session of its own: Ctrl-C reaches this process alone, which tells the ranks, once.
            process = subprocess.Popen(command, env=environment, start_new_session=True)
            told: set[str] = set()
            while True:
                try:
                    return process.wait(timeout=_POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    pass
                if self._signals > 1:
                    self._sweep(ranks)
                    os.killpg(process.pid, signal.SIGKILL)
                elif self._signals:
                    # again until there are ranks to tell: they may be about to start, and hearing it twice is no harm
                    told |= self._send("USR1", ranks.keys() - told, ranks_only=True)

    def _sweep(self, hosts: Iterable[str]) -> None:
        """Kill what this launcher ever started on these hosts and is still there."""
        self._send("KILL", hosts)

    def _send(self, name: str, hosts: Iterable[str], *, ranks_only: bool = False) -> set[str]:
        """Send a signal to the marked processes; the hosts on which there were any."""
        said = answers(hosts, tell(name, self._mark, ranks_only=ranks_only), self._patience, self._by_ssh)
        return {host for host, pids in said.items() if pids.strip()}

    def _command(self, ranks: Mapping[str, int], port: int, folder: Path) -> tuple[list[str], dict[str, str]]:
        command = [str(Path(sys.executable).with_name("deepspeed")), "--master_port", str(port)]
        environment = dict(os.environ)
        exports = [self._mark, *self._exports]
        if self._by_ssh:
            hostfile, variables = folder / "hosts", folder / "environment"
            hostfile.write_text("".join(f"{host} slots={count}\n" for host, count in ranks.items()))
            variables.write_text("\n".join(exports) + "\n")
            command += ["--hostfile", str(hostfile), "--master_addr", next(iter(ranks))]
            command += ["--force_multi", "--no_ssh_check"]  # one host that is left may be another than this
            environment["DS_ENV_FILE"] = str(variables)
            environment[SSH_ARGUMENTS] = f"{KEEP_ALIVE} {environment.get(SSH_ARGUMENTS, '')}"
        else:
            command += ["--num_gpus", str(ranks[HERE])]
            environment |= dict(export.split("=", 1) for export in exports)
        return [*command, str(self._script), *self._arguments], environment

    def _hear(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._signals += 1
