"""The `deepspeed` command that this process is a rank of, where it is: its hosts, and whether it is still there.

It starts a launcher on every host, which starts the ranks there; what the launcher was told shows in its arguments.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path


def hosts_by_rank() -> list[str]:
    """The host of every rank, as the hostfile calls it; empty where no such command started this process."""
    told = "--world_info="
    for argument in _launcher_arguments(os.getppid()):
        if argument.startswith(told):
            places: dict[str, list[int]] = json.loads(base64.urlsafe_b64decode(argument.removeprefix(told)))
            return [host for host, devices in places.items() for _ in devices]
    return []


def watch() -> Callable[[], bool]:
    """Whether the command has gone since; never where there is none.

    When it alone is killed, launcher and ranks live on, and would train on with nobody to know. (Over ssh it is rather
    the connection that is watched.)
    """
    launcher = os.getppid()
    if not _launcher_arguments(launcher):
        return lambda: False
    command = _parent_of(launcher)
    return lambda: _parent_of(launcher) != command


def _launcher_arguments(process: int) -> list[str]:
    """The arguments of DeepSpeed's launcher; empty where this process is none."""
    arguments = _facts(process, "cmdline").decode(errors="replace").split("\0")
    return arguments if "deepspeed.launcher.launch" in arguments else []


def _parent_of(process: int) -> int:
    """0 where there is no such process."""
    after_name = _facts(process, "stat").rpartition(b")")[2].split()
    return int(after_name[1]) if after_name else 0


def _facts(process: int, kind: str) -> bytes:
    try:
        return Path(f"/proc/{process}/{kind}").read_bytes()
    except OSError:  # it has gone, or is outside this container
        return b""
