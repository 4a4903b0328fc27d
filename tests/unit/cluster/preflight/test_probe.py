"""What hosts answer by ssh."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from cluster.preflight import checks, probe


def test_a_shell_that_greets_hides_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def greet(hosts: Iterable[str], command: str, _: float) -> dict[str, str]:
        if "echo" in command:
            written.append(command.split("echo ")[1].split(maxsplit=1)[0])
        printed = "1000.5" if command.startswith("date") else written[0] if command.startswith("cat") else ""
        return {host: f"Welcome to {host}\n{printed}\n" for host in hosts}

    monkeypatch.setattr(probe, "answers", greet)
    hosts = probe.Hosts({"alpha": 1, "beta": 1}, 1)
    readings, _, _ = probe.clocks(hosts)
    assert readings == {"alpha": 1000.5, "beta": 1000.5}
    with probe.token_in(hosts, Path("/run")) as (token, read):
        assert checks.shared(token, read, "/run").faults == ()
