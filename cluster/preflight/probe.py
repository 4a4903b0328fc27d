"""Collects the facts of the hosts by ssh, and times their collectives through `deepspeed`."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.preflight.bandwidth import RESULT
from cluster.preflight.checks import Measured
from cluster.preflight.facts import Facts
from cluster.supervision.hosts import KEEP_ALIVE, SSH_ARGUMENTS, answers
from cluster.versions import ROOT


class ProbeError(RuntimeError):
    """The hosts could not be measured; the message quotes what they printed instead."""


@dataclass(frozen=True)
class Hosts:
    """The hosts of a hostfile, and how long one may take to answer.

    Attributes:
        slots: ranks of each.
        patience_seconds: time limit for an answer.
    """

    slots: Mapping[str, int]
    patience_seconds: float

    @property
    def first(self) -> str:
        """The host of rank 0."""
        return next(iter(self.slots))

    def ask(self, command: str) -> dict[str, str]:
        """The output of the command on each host on which it succeeds, in the hostfile's order."""
        return answers(self.slots, command, self.patience_seconds)


def facts(hosts: Hosts, shards: Path | None, run: Path | None, port: int) -> tuple[dict[str, Facts], dict[str, str]]:
    """The facts of each host that has them, and the last line that each other host printed instead."""
    words: list[str | Path] = [sys.executable, "-m", "cluster.preflight.facts", "--port", str(port)]
    words += ["--shards", shards] if shards else []
    words += ["--run", run] if run else []
    command = f"cd {shlex.quote(str(ROOT))} && {shlex.join(map(str, words))}"
    found, without = {}, {}
    for host, output in hosts.ask(f"({command}) 2>&1 || true").items():
        last = _last_line(output) or "nothing"
        try:
            found[host] = Facts(**json.loads(last))
        except (ValueError, TypeError):
            without[host] = last
    return found, without


def clocks(hosts: Hosts) -> tuple[dict[str, float], float, float]:
    """Every host's clock, and this machine's before and after they were read: seconds since 1970."""
    asked = time.time()
    readings = {host: float(_last_line(output)) for host, output in hosts.ask("date +%s.%N").items()}
    return readings, asked, time.time()


@contextmanager
def token_in(hosts: Hosts, folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A token that the first host writes to `folder`, which is created if need be, and what each host reads there."""
    token = uuid.uuid4().hex
    file = shlex.quote(str(folder / f".preflight-{token}"))
    first = Hosts({hosts.first: 1}, hosts.patience_seconds)
    first.ask(f"mkdir -p {shlex.quote(str(folder))} && echo {token} > {file}")
    try:
        read = hosts.ask(f"cat {file} 2>/dev/null || true")
        yield token, {host: _last_line(output) for host, output in read.items()}
    finally:
        first.ask(f"rm -f {file}")


def exchange(
    hosts: Hosts, hostfile: Path, port: int, gradient_bytes: int, embedding_bytes: int, timeout_seconds: float
) -> tuple[list[Measured], dict[str, float]]:
    """Durations of the collectives over all ranks, and bytes a second of each link between successive hosts.

    Raises:
        ProbeError: if the launcher, or a rank, fails or takes longer than `timeout_seconds`.
    """
    command = [str(Path(sys.executable).with_name("deepspeed")), "--hostfile", str(hostfile), "--force_multi"]
    command += ["--no_ssh_check"]  # its check would call ssh without the arguments for ssh
    command += ["--master_addr", hosts.first, "--master_port", str(port), "--module", "cluster.preflight.bandwidth"]
    command += ["--gradient-bytes", str(gradient_bytes), "--embedding-bytes", str(embedding_bytes)]
    # pdsh loses quotes
    command += ["--slots", ",".join(f"{host}={count}" for host, count in hosts.slots.items())]
    command += ["--timeout-seconds", str(timeout_seconds / 2)]
    environment = os.environ | {SSH_ARGUMENTS: f"{KEEP_ALIVE} {os.environ.get(SSH_ARGUMENTS, '')}"}
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        raise ProbeError(f"deepspeed: got no end within {timeout_seconds:g} s, wanted the ranks' result") from None
    finally:
        if process.poll() is None:  # too late, or Ctrl-C; ranks elsewhere end at their own time limit
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    for line in output.splitlines():
        if RESULT in line:
            result = json.loads(line.partition(RESULT)[2])
            return [Measured(**one) for one in result["collectives"]], result["links"]
    raise ProbeError(f"deepspeed: got exit code {process.returncode}: {_last_words(output)}")


def _last_line(output: str) -> str:
    """What a command printed; a shell's start-up file may have greeted before."""
    return (output.strip().splitlines() or [""])[-1]


def _last_words(output: str) -> str:
    """The last line that looks like a reason: one with "error", else any."""
    lines = list(filter(None, map(str.strip, output.splitlines())))
    reasons = [line for line in lines if "Error" in line or "error" in line]
    return (reasons or lines or ["no output"])[-1]
