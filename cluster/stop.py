"""Being asked to stop: a signal is remembered, the step in progress is finished, a second signal ends at once."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, TextIO

from cluster import deepspeed_command

# What a stopped run exits with after saving (BSD sysexits' EX_TEMPFAIL): start it again to go on.
EXIT_STOPPED = 75

# What a rank exits with that could not meet the others, or lost one (EX_UNAVAILABLE): resuming may work.
EXIT_LOST = 69

# What a rank exits with whose last save failed (EX_IOERR): resuming works once there is room.
EXIT_UNSAVED = 74

# What a rank exits with when recipe, data, folder or numbers are refused (EX_DATAERR): the next start would end alike.
EXIT_REFUSED = 65

# Ctrl-C; Kubernetes, Slurm and the deepspeed launcher; Slurm's `--signal=USR1@300` ahead of the time limit.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def exit_with(main: Callable[[], int | None]) -> NoReturn:
    """Run a command and exit with its code; without a word when whoever read its output has gone, as under ``| head``.

    It is then cut short at its next print, so a command prints its results after it has written them.
    """
    try:
        try:
            code: int | str | None = main()
        except SystemExit as asked:  # argparse's, after --help
            code = asked.code
        sys.stdout.flush()
    except BrokenPipeError:
        if not _nobody_reads(sys.stdout):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's own last flush
        code = 128 + signal.SIGPIPE
    sys.exit(code)


def _nobody_reads(stream: TextIO) -> bool:
    poll = select.poll()
    poll.register(stream, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def leave(code: int) -> NoReturn:
    """End this process at once: without clean-up, which would wait for threads and for ranks that are not there."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


class StopRequest:
    """Whether this process was asked to stop. Only the main thread may make one.

    Until `defer` there is nothing to save: a signal ends the process at once, with `EXIT_STOPPED`. Afterwards it is
    remembered; a second SIGINT or SIGTERM ends the process. (One of each does not: at Ctrl-C the deepspeed launcher
    sends SIGTERM to ranks that the terminal has sent SIGINT. Nor do SIGUSR1 and SIGHUP, however often they come.)
    The end of the `deepspeed` command, which passes no signal on, asks to stop as well.
    """

    def __init__(self) -> None:
        self._signal: signal.Signals | None = None
        self._deferred = False
        self._command_is_gone = deepspeed_command.watch()
        for number in signals_to_hear():
            signal.signal(number, self._take)

    @property
    def asked(self) -> str:
        """By what this process was asked to stop, in a word or a few; empty where it was not."""
        if self._signal is not None:
            return self._signal.name
        return "the end of the deepspeed command" if self._command_is_gone() else ""

    def defer(self) -> None:
        """From now on there is something to save: whoever made this looks at `asked`."""
        self._deferred = True

    def _take(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if not self._deferred:
            print(
                f"stopped by {signal.Signals(number).name} before anything was to be saved", file=sys.stderr, flush=True
            )
            leave(EXIT_STOPPED)
        self._signal = signal.Signals(number)
        if number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)


def signals_to_hear() -> list[signal.Signals]:
    """The signals that ask to stop: a closed terminal's too, unless nohup says otherwise."""
    hang_up = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL else []
    return [*SIGNALS, *hang_up]
