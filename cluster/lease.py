"""A folder has one holder: a process that writes its name there and keeps it fresh, on any disk that hosts share.

A claim is a file ``<number>.json`` in a folder of claims; it is made exclusively, and the holder sets its time anew
every `BEAT_SECONDS`. A process on the same machine is known to be dead by its number and start. One elsewhere is taken
for dead if its file keeps its time for `SILENT_SECONDS` on the clock of the process that looks: clocks of two hosts are
never compared, and no lock of the file system is needed. A process that takes a folder over makes the next number: of
two that find the same holder dead one succeeds, and removes the dead one's file, by which a holder that only slept
learns that it has lost the folder. A start of a supervisor takes over from its earlier ones, dead or not, and gives
them a few beats to learn it: the supervisor has ended them, or has lost sight of their host.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

BEAT_SECONDS = 1.0
SILENT_SECONDS = 20.0


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return uuid.uuid4().hex  # like no other: then only the beats count


def _started(pid: int) -> int | None:
    """When a process of this machine began; None if it is none, or has ended and only its parent has not looked."""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(numbers[18])


@dataclass(frozen=True)
class Holder:
    """A process that holds a folder, or wants to.

    Attributes:
        command: that started it.
        mark: the same for all starts of one supervisor; empty without one.
        attempt: number of the start among those.
        host, pid: where it runs.
        machine: identifies what its pid belongs to: a boot, and a namespace of pids.
        started: when the process began, in the kernel's ticks: a pid may be used again.
        since: when it took the folder, for people.
    """

    command: str
    mark: str = ""
    attempt: int = 0
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    machine: str = field(default_factory=_machine)
    started: int = field(default_factory=lambda: _started(os.getpid()) or 0)
    since: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S"))

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host} since {self.since} ({self.command})"


class HeldError(RuntimeError):
    """Another process holds the folder; the message names it, if its file can be read."""

    def __init__(self, folder: Path, holder: Holder | None) -> None:
        super().__init__(f"{folder.parent}: held by {holder or 'a process that could not write its name'}")


@contextmanager
def leased(
    folder: Path,
    me: Holder,
    lost: Callable[[str], object],
    *,
    beat_seconds: float = BEAT_SECONDS,
    silent_seconds: float = SILENT_SECONDS,
) -> Iterator[None]:
    """Hold a folder while the context is open.

    Args:
        folder: where claims are written; made if need be.
        me: this process.
        lost: called in a thread, with the reason in a line, when another process has taken the folder over, since this
            one was silent for too long: it must no longer write.
        beat_seconds, silent_seconds: as the module says; the same for all that want the folder.

    Raises:
        HeldError: another process that lives holds it.
        OSError: nothing can be written there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mine, unsure = _take(folder, me, beat_seconds, silent_seconds)
    done = threading.Event()

    def beat() -> None:
        while not done.wait(beat_seconds):
            # A disk that takes nothing for a while, or is gone, ends no holder; others cannot take it over either.
            with contextlib.suppress(OSError):
                try:
                    os.utime(mine)
                except FileNotFoundError:
                    others = _claims(folder)
                    if others:
                        lost(f"{folder.parent}: taken over by {_read(others[-1]) or 'another process'}")
                        return
                    _write(mine, me)

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        if unsure:
            done.wait(2.5 * beat_seconds)
        yield
    finally:
        done.set()
        thread.join()
        with contextlib.suppress(OSError):
            mine.unlink()


def last_holder(folder: Path, *, beat_seconds: float = BEAT_SECONDS) -> tuple[Holder | None, bool]:
    """Who holds a folder, or did last and has not given it back; and whether that process lives.

    To look, not to take it: of a process elsewhere a few beats decide, where `leased` waits for `SILENT_SECONDS`.
    """
    for path in reversed(_claims(folder)):
        holder = _read(path)
        lives = not _is_dead(path, holder, Holder(""), beat_seconds, 5 * beat_seconds)
        if path.exists():
            return holder, lives
    return None, False


def _take(folder: Path, me: Holder, beat_seconds: float, silent_seconds: float) -> tuple[Path, bool]:
    """This process's claim; and whether an earlier one of the same mark may live."""
    while True:
        over, unsure = [], False
        for path in _claims(folder):
            holder = _read(path)
            if holder and me.mark and holder.mark == me.mark and holder.attempt < me.attempt:
                unsure |= holder.machine != me.machine or _started(holder.pid) == holder.started
            elif not _is_dead(path, holder, me, beat_seconds, silent_seconds):
                raise HeldError(folder, _read(path) or holder)  # it may have been about to write its name
            over.append(path)
        numbers = [int(path.stem) for path in over]
        mine = folder / f"{max(numbers, default=0) + 1:08d}.json"
        try:
            _write(mine, me)
        except FileExistsError:
            continue
        # What came meanwhile was made by one that had seen an older folder, or a newer: it is judged as well.
        if set(_claims(folder)) <= {mine, *over}:
            for path in over:
                with contextlib.suppress(OSError):  # of another user: judged again by the next
                    path.unlink()
            return mine, unsure
        mine.unlink()
        time.sleep(min(0.2, beat_seconds))


def _claims(folder: Path) -> list[Path]:
    """The files of all claims, the newest last."""
    return sorted(path for path in folder.glob("*.json") if path.stem.isdecimal())


def _write(path: Path, me: Holder) -> None:
    with path.open("xb", buffering=0) as file, contextlib.suppress(OSError):
        file.write(json.dumps(asdict(me)).encode())  # on a full disk the claim has no name, and holds as well


def _read(path: Path) -> Holder | None:
    try:
        return Holder(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _is_dead(path: Path, holder: Holder | None, me: Holder, beat_seconds: float, silent_seconds: float) -> bool:
    if holder and holder.machine == me.machine:
        return _started(holder.pid) != holder.started
    first, until = _time_of(path), time.monotonic() + silent_seconds
    while time.monotonic() < until:
        time.sleep(beat_seconds / 4)
        now = _time_of(path)
        if now is None or now != first:
            return now is None
    return True


def _time_of(path: Path) -> int | None:
    """The file's time; None if it is gone. Opened first: then a network file system asks its server."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None
