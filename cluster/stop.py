"""Stop requests: a signal is remembered, the step in progress is finished, a second signal ends the process at once."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import select
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, TextIO

from cluster import deepspeed_command

# Exit code of a run that was stopped and has saved (BSD sysexits' EX_TEMPFAIL): start it again to resume.
EXIT_STOPPED = 75

# Exit code of a rank that could not meet the others, or lost one (EX_UNAVAILABLE): resuming may work.
EXIT_LOST = 69

# Exit code of a rank that could not write what a run cannot do without (EX_IOERR): resuming works once there is room.
EXIT_UNSAVED = 74

# Exit code of a rank that refuses recipe, data, folder or numbers (EX_DATAERR): another start would end the same way.
EXIT_REFUSED = 65

# Ctrl-C; Kubernetes, Slurm and the deepspeed launcher; Slurm's `--signal=USR1@300` ahead of the time limit.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


# What ends without a change to the command: a disk that is full, read-only or not answering.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EFBIG)


def code_of(error: Exception) -> int:
    """The exit code for a fault: the disk may recover, but input or a path that is wrong stays so."""
    return EXIT_UNSAVED if isinstance(error, OSError) and error.errno in _DISK else EXIT_REFUSED


def one_line(error: Exception) -> str:
    """The message of an error for users; an error of the system's names its file first."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def tell(line: str) -> None:
    """Print a line on standard error if that takes one: a log on a full disk, or a closed terminal, ends nothing."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def faults_in_one_line(
    command: str, faults: tuple[type[Exception], ...] = (ValueError, OSError)
) -> Callable[[Callable[[], int]], Callable[[], int]]:
    """Decorate a command's `main`: a fault ends it with one line on standard error and the code of `code_of`.

    A broken pipe passes: it is for `exit_with`.
    """

    def decorate(main: Callable[[], int]) -> Callable[[], int]:
        @functools.wraps(main)
        def guarded() -> int:
            try:
                return main()
            except BrokenPipeError:
                raise
            except faults as error:
                tell(f"{command}: {one_line(error)}")
                return code_of(error)

        return guarded

    return decorate


def exit_with(main: Callable[[], int | None]) -> NoReturn:
    """Run a command and exit with its code; silently if the reader of its output has ended, as with ``| head``.

    The command is then cut short at its next print, so a command prints its results after it has written them.
    """
    try:
        try:
            code: int | str | None = main()
        except SystemExit as asked:  # argparse's, after --help
            code = asked.code
        sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_has_ended(sys.stdout):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's own last flush
        code = 128 + signal.SIGPIPE
    sys.exit(code)


def _reader_has_ended(stream: TextIO) -> bool:
    poll = select.poll()
    poll.register(stream, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def leave(code: int) -> NoReturn:
    """End this process at once: without clean-up, which would wait for threads and for ranks that are gone."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


class StopRequest:
    """Whether this process was asked to stop. Only the main thread may create one.

    Until `defer` there is nothing to save: a signal ends the process at once, with `EXIT_STOPPED`. After that a signal
    is remembered, and a second SIGINT or a second SIGTERM ends the process. One of each does not: on Ctrl-C the
    deepspeed launcher sends SIGTERM to ranks that got SIGINT from the terminal. SIGUSR1 and SIGHUP may come any number
    of times. The end of the `deepspeed` command, which passes no signal on, is a stop request as well.
    """

    def __init__(self) -> None:
        self._signal: signal.Signals | None = None
        self._deferred = False
        self._command_is_gone = deepspeed_command.watch()
        for number in stop_signals():
            signal.signal(number, self._remember)

    @property
    def asked(self) -> str:
        """What asked this process to stop, in a few words; empty if nothing did."""
        if self._signal is not None:
            return self._signal.name
        return "the end of the deepspeed command" if self._command_is_gone() else ""

    def defer(self) -> None:
        """From now on there is something to save: signals are remembered, and the caller polls `asked`."""
        self._deferred = True

    def _remember(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if not self._deferred:
            name = signal.Signals(number).name
            tell(f"stopped by {name} before there was anything to save")
            leave(EXIT_STOPPED)
        self._signal = signal.Signals(number)
        if number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)


def stop_signals() -> list[signal.Signals]:
    """The signals that ask to stop: also a closed terminal's (SIGHUP), unless it is ignored, as under nohup."""
    hang_up = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL else []
    return [*SIGNALS, *hang_up]
