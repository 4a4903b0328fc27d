"""A supervised run as a subprocess: its output, its steps, and what a fault cost it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.end_to_end.launcher import DEEPSPEED, PATIENCE_SECONDS, metrics
from tests.faces import ROOT
from tests.fault_table import Row, record
from tests.ports import free_port


class Supervised:
    """`stages/supervise.py` with quick probes and waits, in a process group of its own, its output in a file."""

    def __init__(
        self,
        folder: Path,
        where: Sequence[str | Path],
        recipe: Path,
        run: Path,
        environment: Mapping[str, str] = {},
        step_seconds: float = 8,
    ) -> None:
        self.run, self._output = run, folder / "output"
        supervise = ROOT / "stages" / "supervise.py"
        command: list[str | float | Path] = [sys.executable, supervise, *where, "--master-port", free_port()]
        command += ["--probe-seconds", 4, "--wait-seconds", 0.5, "--export", "OMP_NUM_THREADS=1"]
        command += ["--", "--recipe", recipe, "--run", run]
        command += ["--set", f"faults.step_seconds={step_seconds}", "--set", "timeout_seconds=60"]
        with self._output.open("a") as output:
            self.process = subprocess.Popen(
                list(map(str, command)),
                cwd=folder,
                env=os.environ | {"PATH": f"{DEEPSPEED.parent}:{os.environ['PATH']}"} | dict(environment),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    @property
    def step(self) -> int:
        return int(max((row["step"] for row in metrics(self.run)), default=0))

    def ranks(self) -> list[int]:
        """Process ids of this machine's ranks, in rank order."""
        found = [pid for agent in children(self.process.pid) for pid in children(agent) if is_rank(pid)]
        return sorted(found, key=name_of)

    def wait_for(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert self.process.poll() is None and time.monotonic() < deadline, self.output
            time.sleep(0.05)

    def suffer(self, fault: str, done: str, harm: Callable[[], object], told: str, outcome: str) -> float:
        """Do `harm`, wait until the output has `told`, then for the next step, and record the row; seconds until it."""
        before, written, at = self.step, len(self.output), time.time()
        seen = {told: 0.0, "supervise.py: failed with code": 0.0, "supervise.py: start ": 0.0}

        def has_come(words: str) -> bool:
            since = self.output[written:]
            for each, seen_at in seen.items():
                if not seen_at and each in since:
                    seen[each] = time.time()
            return bool(seen[words])

        harm()
        self.wait_for(lambda: has_come(told))
        told_at = seen[told]
        self.wait_for(lambda: has_come("supervise.py: start "))
        _, failed_at, started_at = seen.values()
        self.wait_for(lambda: self._steps_since(max(told_at, started_at)))
        first = self._steps_since(max(told_at, started_at))[0]
        lost = max(0, before - int(first["step"]) + 1)
        self.wait_for(lambda: "first step done after " in self.output[written:])
        after = re.findall(r"first step done after [0-9.]+ s: (.*)\n", self.output[written:])[-1]
        parts = {
            "ranks ended": failed_at - told_at,
            "next start": started_at - failed_at,
            **{part: float(seconds) for part, seconds in re.findall(r"([a-z][a-z ]*) ([0-9.]+) s", after)},
        }
        # what is told only after the restart is no part of it
        came = parts if told_at < failed_at else {}
        record(Row(fault, done, lost, told_at - at, first["time"] - at, outcome, came))
        return float(first["time"] - at)

    def _steps_since(self, moment: float) -> list[dict[str, Any]]:
        return [row for row in metrics(self.run) if row["time"] > moment]

    def end(self) -> int:
        """Wait for the end; the exit code."""
        try:
            return self.process.wait(timeout=PATIENCE_SECONDS)
        finally:
            self.stop()

    def stop(self) -> None:
        """Leave nothing behind, here or on any host: the second signal ends everything at once."""
        if self.process.poll() is None:
            # Two of a kind could arrive as one; and a test may have failed while the supervisor was held.
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
                self.process.send_signal(number)
        self.process.wait(timeout=PATIENCE_SECONDS)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def is_rank(pid: int) -> bool:
    """Whether a process is a rank that an agent has started."""
    return name_of(pid).startswith("rank ")
