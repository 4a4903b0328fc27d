"""The `deepspeed` command that started this rank: its hosts, and whether it still runs.

The command starts a launcher on every host, which starts the ranks there; the launcher's arguments name the hosts.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path


def hosts_by_rank() -> list[str]:
    """The host of every rank, as the hostfile calls it; empty if no such command started this process."""
    option = "--world_info="
    for argument in _launcher_arguments(os.getppid()):
        if argument.startswith(option):
            places: dict[str, list[int]] = json.loads(base64.urlsafe_b64decode(argument.removeprefix(option)))
            hosts = []
            for host, devices in places.items():
                hosts += [host] * len(devices)
            return hosts
    return []


def watch() -> Callable[[], bool]:
    """A function that returns whether the command has ended since; always False if no such command started this rank.

    If the command alone is killed, launcher and ranks live on, and would train unsupervised. (Over ssh, the connection
    is watched in effect.)
    """
    launcher = os.getppid()
    if not _launcher_arguments(launcher):
        return lambda: False
    command = _parent_of(launcher)
    return lambda: _parent_of(launcher) != command


def _launcher_arguments(process: int) -> list[str]:
    """The arguments of DeepSpeed's launcher; empty if this process is not one."""
    arguments = _facts(process, "cmdline").decode(errors="replace").split("\0")
    return arguments if "deepspeed.launcher.launch" in arguments else []


def _parent_of(process: int) -> int:
    """The parent's number; 0 if there is no such process."""
    after_name = _facts(process, "stat").rpartition(b")")[2].split()
    return int(after_name[1]) if after_name else 0


def _facts(process: int, kind: str) -> bytes:
    try:
        return Path(f"/proc/{process}/{kind}").read_bytes()
    except OSError:  # it has ended, or is outside this container
        return b""
