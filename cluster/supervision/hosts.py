"""The hosts of a run: read from DeepSpeed's hostfile, probed, and assigned ranks."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

# pdsh passes these on to ssh. A host that is cut off closes no connection: ssh has to probe it.
KEEP_ALIVE = "-o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=5 -o ServerAliveCountMax=3"
SSH_ARGUMENTS = "PDSH_SSH_ARGS_APPEND"

# The one host of a run that needs no ssh.
HERE = "localhost"


def read_hostfile(path: Path) -> dict[str, int]:
    """Hosts and their slots, in the file's order: lines of ``host slots=N``; # begins a comment.

    Raises:
        ValueError: naming a faulty line; if there is no host, or one that the others would look for on themselves.
    """
    hosts: dict[str, int] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        name, slots = words[0], words[-1].removeprefix("slots=")
        if len(words) != 2 or not slots.isdigit() or int(slots) < 1 or name in hosts:
            raise ValueError(f"{path} line {number}: got {line!r}, wanted a new host as 'name slots=N'")
        hosts[name] = int(slots)
    if not hosts:
        raise ValueError(f"{path}: got no host, wanted lines of 'name slots=N'")
    if HERE in hosts and len(hosts) > 1:
        raise ValueError(f"{path}: got {HERE} beside other hosts, wanted a name by which they too reach this one")
    return hosts


def variables_of_hosts() -> list[str]:
    """``NAME=VALUE`` for every host, from the files that `deepspeed` reads: of this folder, after the user's."""
    found = []
    for folder in (Path.home(), Path.cwd()):
        file = folder / os.environ.get("DS_ENV_FILE", ".deepspeed_env")
        if file.is_file():
            found += [line for line in file.read_text().splitlines() if "=" in line]
    return found


def answers(hosts: Iterable[str], command: str, timeout_seconds: float) -> dict[str, str]:
    """The output of a shell command on each host on which it succeeds within the time; it runs on all at once."""
    ssh = ["ssh", *shlex.split(f"{KEEP_ALIVE} {os.environ.get(SSH_ARGUMENTS, '')}")]
    processes = {}
    for host in hosts:
        processes[host] = subprocess.Popen(
            [*ssh, host, command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    outputs = {}
    for host, process in processes.items():
        try:
            output, _ = process.communicate(timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            continue
        if process.returncode == 0:
            outputs[host] = output
    return outputs


def assign(hosts: Mapping[str, int], fits: Callable[[int], bool]) -> dict[str, int]:
    """Ranks for each host: the largest number that has slots and fits the run, hosts filled in order.

    Example: 3 hosts of 4 slots and a global batch of 16 make 8 ranks, on the first two. Empty if no number fits.
    """
    for ranks in range(sum(hosts.values()), 0, -1):
        if fits(ranks):
            given: dict[str, int] = {}
            for host, slots in hosts.items():
                take = min(slots, ranks - sum(given.values()))
                if take:
                    given[host] = take
            return given
    return {}
