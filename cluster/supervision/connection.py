"""The supervisor's end of an agent: a process on each host that starts ranks there (`host_agent`)."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any


class Connection:
    """A process whose other end is an agent: `ssh`, or on this machine the agent itself.

    Args:
        command: that runs the agent.
        environment: of the command.
        prefix: of every line that the host writes; None leaves them as they are.

    Attributes:
        begun_at: by the monotonic clock.
        has_answered: the agent runs, or has run.
        codes: exit codes by rank of host, of the last start's ranks that have ended; negative if killed by a signal.
        said: the last line written before the agent answered, as by an `ssh` that fails.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], prefix: str | None) -> None:
        self.begun_at, self.has_answered, self.said = time.monotonic(), False, ""
        self.codes: dict[int, int] = {}
        # In a session of its own: Ctrl-C reaches the supervisor alone, which signals the ranks, once.
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if prefix is None else subprocess.PIPE,
            start_new_session=True,
        )
        threads = [threading.Thread(target=self._listen, daemon=True)]
        if prefix is not None:
            threads.append(threading.Thread(target=self._relay, args=(prefix.encode(),), daemon=True))
        for thread in threads:
            thread.start()
        self._threads, self._listener = threads, threads[0]

    @property
    def is_lost(self) -> bool:
        """Whether the agent has ended or cannot be reached any more."""
        return not self._listener.is_alive()

    @property
    def is_there(self) -> bool:
        """Whether ranks can be started."""
        return self.has_answered and not self.is_lost

    def start(self, variables: Sequence[Mapping[str, str]]) -> None:
        """Start a rank with each of these environments."""
        self.codes = {}
        self._order(start=[dict(one) for one in variables])

    def signal(self, name: str) -> None:
        """Send the signal, by its name, to every rank."""
        self._order(signal=name)

    def greet(self) -> None:
        """Show the agent that somebody is there."""
        self._order()

    def hang_up(self) -> None:
        """Let the agent end; its ranks are asked to stop."""
        with contextlib.suppress(OSError):
            self._pipe(self._process.stdin).close()

    def close(self, wait_seconds: float = 0.0) -> None:
        """Hang up, and wait for the agent's end; if it does not end in time, cut it off."""
        self.hang_up()
        try:
            self._process.wait(wait_seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for thread in self._threads:
            thread.join(timeout=1)  # a process that was forked there may hold the pipes open

    def _order(self, **order: Any) -> None:
        line = json.dumps(order) if order else ""
        with contextlib.suppress(OSError, ValueError):  # it has ended, and is noticed as lost
            pipe = self._pipe(self._process.stdin)
            pipe.write(f"{line}\n".encode())
            pipe.flush()

    def _listen(self) -> None:
        with self._pipe(self._process.stdout) as lines:
            for line in lines:
                with contextlib.suppress(ValueError):  # cut short
                    answer = json.loads(line)
                    if "here" in answer:
                        self.has_answered = True
                    else:
                        self.codes[int(answer["rank"])] = int(answer["code"])

    def _relay(self, prefix: bytes) -> None:
        with self._pipe(self._process.stderr) as lines:
            for line in lines:
                if self.has_answered:
                    with contextlib.suppress(OSError):  # of a full disk: later lines may find room
                        os.write(2, prefix + line)  # in one piece, whatever other hosts write
                else:
                    self.said = line.decode(errors="replace").strip()

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None
        return pipe
