"""Alerts on a run that is gone, that restarts again and again, or that cannot save: from a real Prometheus."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.monitoring import live
from cluster.monitoring.runbooks import read_runbooks
from cluster.telemetry import Telemetry
from tests.unit.cluster.monitoring.test_monitoring import needs_prometheus, query, wait_for

pytestmark = needs_prometheus


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[str]:
    """As `make monitor` on tmp_path, with a second instead of minutes before two alerts fire; its base URL."""
    live.configure(tmp_path)
    config, rules = tmp_path / "prometheus.yml", tmp_path / "alerts.yml"
    config.write_text(config.read_text().replace("5s", "500ms"))
    sooner = r"(- alert: (?:RunStopped|RankGone)\n(?:(?! +- alert).*\n)*? +for:) \d+[sm]"
    text, changed = re.subn(sooner, r"\1 1s", rules.read_text())
    assert changed == 2
    rules.write_text(text)
    with live.prometheus(tmp_path, 0) as base:
        yield base


def firing(base: str) -> set[str]:
    found = query(base, 'ALERTS{alertstate="firing", job="faces"}')
    return {labels["alertname"] for labels, _ in found}


def start(folder: Path, step: int, restarts: int = 0) -> Telemetry:
    """A rank that has just been started at `step` of 1000."""
    telemetry = Telemetry(rank=0, host="h", job="faces")
    telemetry.set("planned_steps", 1000)
    telemetry.set("step", step)
    telemetry.add("restarts_total", restarts)
    telemetry.serve(0)
    telemetry.announce(folder / "targets")
    return telemetry


def wait_until_scraped(base: str, name: str, value: float) -> None:
    """More than once, so that it makes no difference how late this process sees it."""
    several = f'({name}{{job="faces"}} and count_over_time({name}{{job="faces"}}[1h]) > 2)'
    wait_for(lambda: [got for _, got in query(base, several)] == [value], missing=(name, value))


def stop_halfway(base: str, folder: Path, name: str) -> None:
    """A run of that name that starts, stops and is reported."""
    with Telemetry(rank=0, host="h", job=name) as run:
        run.set("planned_steps", 1000)
        run.set("step", 10)
        run.serve(0)
        run.announce(folder / "targets")
        wait_for(lambda: query(base, f'job:spherescale_steps_left:min{{job="{name}"}}'))
    wait_for(lambda: query(base, f'ALERTS{{alertname="RunStopped", alertstate="firing", job="{name}"}}'))


def test_a_run_that_is_stopped_halfway_is_reported_until_it_is_resumed(prometheus: str, tmp_path: Path) -> None:
    run = start(tmp_path, 10)
    wait_until_scraped(prometheus, "job:spherescale_steps_left:min", 990)
    assert firing(prometheus) == set()
    run.close()
    wait_for(lambda: firing(prometheus) == {"RunStopped"})
    answer = query(prometheus, read_runbooks()["RunStopped"].query.replace("$job", "faces"))
    assert [value for _, value in answer] == [990]
    with start(tmp_path, 10):
        wait_for(lambda: firing(prometheus) == set())


def test_a_run_that_ends_after_its_last_step_is_not_reported(prometheus: str, tmp_path: Path) -> None:
    with start(tmp_path, 999) as run:
        run.observe("step_seconds", 0.01)
        wait_until_scraped(prometheus, "spherescale_step_seconds_count", 1)
        run.observe("step_seconds", 0.01)
        run.set("step", 1000)
        wait_until_scraped(prometheus, "job:spherescale_steps_left:min", 0)
    # Two other runs show when its alert would have come: one stopped meanwhile, and one after.
    for name in ("first", "second"):
        stop_halfway(prometheus, tmp_path, name)
    assert firing(prometheus) == set()


def test_a_run_that_crashes_from_one_checkpoint_again_and_again_is_reported(prometheus: str, tmp_path: Path) -> None:
    for restarts in range(3):
        run = start(tmp_path, 100, restarts)
        wait_until_scraped(prometheus, "spherescale_restarts_total", restarts)
        run.close(finished=False)
        assert "RestartLoop" not in firing(prometheus)
    with start(tmp_path, 100, restarts=3):
        wait_for(lambda: firing(prometheus) == {"RestartLoop"})  # RankGone ended with the restart


def test_a_failed_save_is_reported(prometheus: str, tmp_path: Path) -> None:
    with start(tmp_path, 100) as run:
        wait_until_scraped(prometheus, "spherescale_checkpoint_failures_total", 0)
        assert firing(prometheus) == set()
        run.add("checkpoint_failures_total")
        wait_for(lambda: firing(prometheus) == {"SaveFailed"})
        answer = query(prometheus, read_runbooks()["SaveFailed"].query.replace("$job", "faces"))
        assert [round(value) >= 1 for _, value in answer] == [True]
