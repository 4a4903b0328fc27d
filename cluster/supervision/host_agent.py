"""What the supervisor runs on each host: it keeps the imports of training ready, and forks the ranks of every start.

The supervisor starts it over ssh with the script that ranks run, and writes orders into its standard input, a line of
JSON each: ``{"start": [variables of each rank]}``, ``{"signal": name}``, and empty lines, which show that it is there.
The agent answers in lines on its standard output: ``{"here": true}`` as soon as it runs, and ``{"rank": number on this
host, "code": exit code}`` for each rank that has ended. What ranks write goes to its standard error.

The imports are done once, not by each rank of each start. A rank that is forked from them has its own process, session
and exit code. It is a fresh interpreter instead where a fork could harm: if code or packages have changed since, or if
an import has opened a GPU, which a fork cannot share.

If the supervisor is gone, which closes the standard input, the ranks are asked to stop, and save. If the agent is gone
they are as well. An agent without ranks ends when it has heard nothing for a minute: its host was cut off.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from cluster.marks import AGENT_VARIABLE, kill_marked
from cluster.stop import EXIT_STOPPED, SIGNALS, exit_with, leave
from cluster.versions import code_digest, versions

_POLL_SECONDS = 0.05
_SILENT_SECONDS = 60.0
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


@dataclass(frozen=True)
class Rank:
    """What a forked process is to be.

    Attributes:
        variables: of its environment.
        is_cold: whether it must import everything anew.
    """

    variables: Mapping[str, str]
    is_cold: bool


class Agent:
    """Obeys the orders on the standard input. Only the main thread may use it: threads do not survive a fork.

    Args:
        modules: imported before the first start; one that fails is left to the ranks, which say why.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        self._facts = _facts()
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._ranks: dict[int, int] = {}  # number by process
        self._received, self._heard_at, self._is_alone = b"", time.monotonic(), False
        self._answer(here=True)
        # Otherwise torch asks the driver for GPUs in a way that no forked process can use them after.
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
        for module in modules:
            with contextlib.suppress(Exception):
                importlib.import_module(module)
        gc.collect()
        gc.freeze()  # or the collector would write into pages that ranks share

    def serve(self) -> Rank | None:
        """Obey until the supervisor is gone and all ranks have ended. A rank that is forked returns from here."""
        while not self._is_alone or self._ranks:
            for order in self._orders():
                if "signal" in order:
                    self._signal(signal.Signals[order["signal"]])
                if "start" in order:
                    is_cold = self._facts != _facts() or _holds_gpu()
                    for number, variables in enumerate(order["start"]):
                        if self._forks(number):
                            return Rank(variables, is_cold)
            self._reap()
            if not self._ranks and time.monotonic() - self._heard_at > _SILENT_SECONDS:
                break
        return None

    def _orders(self) -> list[dict[str, Any]]:
        """What has arrived; waits a little if nothing has."""
        if self._is_alone:
            time.sleep(_POLL_SECONDS)
            return []
        if not select.select([0], [], [], _POLL_SECONDS)[0]:
            return []
        arrived = os.read(0, 1 << 16)
        self._heard_at = time.monotonic()
        if not arrived:
            self._is_alone = True
            self._signal(signal.SIGTERM)
        *lines, self._received = (self._received + arrived).split(b"\n")
        return [json.loads(line) for line in lines if line]

    def _forks(self, number: int) -> bool:
        """Start a rank; whether this process is the rank."""
        process = os.fork()
        if process:
            self._ranks[process] = number
            return False
        os.setsid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        for stop in SIGNALS:
            signal.signal(stop, _stopped)
        self._answers.close()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        Path("/proc/self/comm").write_text(f"rank {number}")  # as `ps -o comm` and `top` show it
        return True

    def _signal(self, number: signal.Signals) -> None:
        for process in self._ranks:
            if number == signal.SIGKILL:
                with contextlib.suppress(ProcessLookupError):  # it has no group yet
                    os.killpg(process, number)  # with its subprocesses
            os.kill(process, number)  # not yet waited for: the number is its own, dead or alive

    def _reap(self) -> None:
        for process, number in list(self._ranks.items()):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                del self._ranks[process]
                self._answer(rank=number, code=os.waitstatus_to_exitcode(status))

    def _answer(self, **answer: Any) -> None:
        with contextlib.suppress(OSError):  # the supervisor is gone
            print(json.dumps(answer), file=self._answers)


def _facts() -> dict[str, str]:
    return {**versions(), "code": code_digest()}


def _holds_gpu() -> bool:
    """Whether this process has initialised CUDA, which opens this device; merely counting GPUs does not."""
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(link.readlink()) == "/dev/nvidia-uvm":
                return True
    return False


def _stopped(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    leave(EXIT_STOPPED)


def main() -> int:
    """Parse, end what an earlier agent has left, and serve; in a rank run the script."""
    parser = argparse.ArgumentParser(prog="python -m cluster.supervision.host_agent", description=__doc__)
    parser.add_argument("--import", dest="modules", default="", help="modules, separated by commas")
    parser.add_argument("script", nargs=argparse.REMAINDER, help="a Python file and its arguments, the same every rank")
    args = parser.parse_args()
    kill_marked(f"{AGENT_VARIABLE}={os.environ[AGENT_VARIABLE]}")
    agent = Agent(list(filter(None, args.modules.split(","))))
    rank = agent.serve()
    if rank is None:
        leave(0)  # what was imported has nothing to clean up here
    os.environ.update(rank.variables)
    if rank.is_cold:
        os.execv(sys.executable, [sys.executable, *args.script])
    sys.argv = args.script
    runpy.run_path(args.script[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    exit_with(main)
