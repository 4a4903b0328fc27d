"""Being asked to stop: a signal is remembered, the step in progress is finished, a second signal ends at once."""

from __future__ import annotations

import signal
from types import FrameType

# What a stopped run exits with after saving (BSD sysexits' EX_TEMPFAIL): start it again to go on.
EXIT_STOPPED = 75

# What a rank exits with that could not meet the others, or lost one (EX_UNAVAILABLE): resuming may work.
EXIT_LOST = 69

# Ctrl-C; Kubernetes, Slurm and the deepspeed launcher; Slurm's `--signal=USR1@300` ahead of the time limit.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether this process was asked to stop. Only the main thread may make one."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        for number in SIGNALS:
            signal.signal(number, self._remember)

    @property
    def asked(self) -> bool:
        """Whether a signal came."""
        return self.signal is not None

    def _remember(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.signal = signal.Signals(number)
        for other in SIGNALS:
            signal.signal(other, signal.SIG_DFL)
