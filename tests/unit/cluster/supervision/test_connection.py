"""The supervisor's end of an agent, with a shell at the other."""

from __future__ import annotations

import errno
import os
import time

import pytest

from cluster.supervision.connection import Connection

AGENT = """echo '{"here": true}'; sleep 0.5; echo lost >&2; sleep 0.5; echo kept >&2; echo '{"rank": 0, "code": 0}'"""


def test_a_line_that_a_full_disk_does_not_take_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    write, lines = os.write, list[bytes]()

    def write_unless_full(file: int, line: bytes) -> int:
        if file != 2:
            return write(file, line)
        lines.append(line)
        if len(lines) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(line)

    monkeypatch.setattr(os, "write", write_unless_full)
    connection = Connection(["sh", "-c", AGENT], os.environ, "alpha: ")
    until = time.monotonic() + 60
    while not connection.is_lost and time.monotonic() < until:
        time.sleep(0.05)
    connection.close(60)
    assert (lines, connection.codes) == ([b"alpha: lost\n", b"alpha: kept\n"], {0: 0})
