"""What the run's wall time went into, restarts included: ``goodput.json`` and the metrics of the same name."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import override

from cluster.goodput import Account
from cluster.telemetry import Telemetry
from pipeline.files import write_file
from pipeline.training.observers.observer import Observer
from pipeline.training.record import Record, Window

if TYPE_CHECKING:
    from pipeline.training.evaluator import Evaluated

# Of a process that is killed, at most so many of the last seconds count as the restart's.
_WRITE_SECONDS = 5.0


class Goodput(Observer):
    """Accounts for every moment of the run, as this rank sees it; the first rank's account is kept in the folder.

    Args:
        account: up to the end of the start before; opened at the start of this process for a new run.
        telemetry: of this rank.
        path: of ``goodput.json``; None on the other ranks.
        clock: seconds since the epoch.
    """

    def __init__(
        self, account: Account, telemetry: Telemetry, path: Path | None, clock: Callable[[], float] = time.time
    ) -> None:
        self._account, self._telemetry, self._path, self._clock = account, telemetry, path, clock
        # A process counts from 0, as Prometheus expects; but what it makes up for of the start before is its own.
        self._told = dict(account.lost)
        self._step, self._written_at = 0, 0.0
        # What the time before the first step is lost to.
        self._before: str | None = "restart" if account.until > account.began else "start"

    @override
    def started(self, step: int) -> None:
        self._step = step
        self._tell(self._account.back_to(step))
        self._write()  # of a start that comes to no step, the time counts too

    @override
    def recorded(self, record: Record, window: Window) -> None:
        now, stall = self._clock(), record.stall_seconds or 0.0
        account = self._account
        begun = now - record.seconds - stall
        if record.step <= self._step:  # rolled back meanwhile
            account = account.back_to(record.step - 1).passed(begun, rest="lost_work")
        elif self._before:
            account = account.passed(begun, rest=self._before)
        lost = {
            "save_stall": stall,
            "data_wait": record.parts.get("data_wait", 0.0),
            "straggler": record.waited_seconds,
        }
        account = account.passed(now, lost, rest="lost_work" if record.skipped else None)
        self._step, self._before = record.step, None
        self._tell(account.saved(record.step) if record.stall_seconds is not None else account)
        if now - self._written_at >= _WRITE_SECONDS:
            self._written_at = now
            self._write()

    @override
    def evaluated(self, found: Evaluated) -> None:
        self._tell(self._account.passed(self._clock(), {"evaluation": found.seconds}, rest=self._before))

    @override
    def ended(self, finished: bool) -> None:
        """Until the next start nobody works for the run, unless an error ended it: then that is the restart's."""
        self._tell(self._account.passed(self._clock(), rest=self._before))
        self._write(paused=finished)

    def _tell(self, account: Account) -> None:
        self._account = account
        if account.until > account.began:
            self._telemetry.set("goodput_ratio", account.ratio)
        for cause, seconds in account.lost.items():
            self._telemetry.add("lost_seconds_total", seconds - self._told.get(cause, 0.0), cause)
        self._told = dict(account.lost)

    def _write(self, *, paused: bool = False) -> None:
        if self._path is not None:
            content = {**asdict(self._account), "paused": paused, "goodput_ratio": self._account.ratio}
            write_file(self._path, json.dumps(content).encode(), synced=False)


def read_account(path: Path, began: float) -> Account:
    """Of the run in this folder, to go on with in a process that `began` then; opened if there is none."""
    try:
        held = json.loads(path.read_text())
        marks = tuple((int(step), float(trained)) for step, trained in held["marks"])
        lost = {str(cause): float(seconds) for cause, seconds in held["lost"].items()}
        account = Account(float(held["began"]), float(held["until"]), float(held["trained"]), lost, marks)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Account.opened(began)
    return account.paused(began) if held["paused"] else account
