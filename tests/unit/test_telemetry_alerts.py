"""The monitoring files against the table of metrics, promtool, and a real Prometheus."""

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.telemetry import METRICS, PREFIX, Telemetry

MONITORING = Path(__file__).parents[2] / "cluster" / "monitoring"
RULES = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]
ALERTS = [rule for rule in RULES if "alert" in rule]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}

needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="needs promtool (Debian: apt-get install prometheus)"
)
needs_prometheus = pytest.mark.skipif(
    not shutil.which("prometheus"), reason="needs prometheus (Debian: apt-get install prometheus)"
)


def exposed_names() -> set[str]:
    names = set()
    for metric in METRICS:
        suffixes = ("_sum", "_count", "_bucket") if metric.kind == "histogram" else ("",)
        names |= {PREFIX + metric.name + suffix for suffix in suffixes}
    return names


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_reads_metrics_that_exist_and_says_what_to_do(rule: dict[str, Any]) -> None:
    assert set(re.findall(rf"(?<!:){PREFIX}\w+", rule["expr"])) <= exposed_names()
    assert set(re.findall(rf"rank:{PREFIX}[\w:]+", rule["expr"])) <= RECORDED
    runbook = rule["annotations"]["runbook"]
    documented = {metric.name for metric in METRICS}
    assert {name.removeprefix(PREFIX) for name in re.findall(rf"{PREFIX}\w+", runbook)} <= documented
    assert rule["annotations"]["summary"]
    assert "1. " in runbook
    assert rule["labels"]["severity"] in {"page", "ticket"}


def test_a_recorded_series_reads_metrics_that_exist() -> None:
    for rule in RULES:
        assert set(re.findall(rf"(?<!:){PREFIX}\w+", rule["expr"])) <= exposed_names()


def test_every_alert_is_made_to_fire() -> None:
    fired = set(re.findall(r'firing", alertname="(\w+)"', (MONITORING / "alerts_test.yml").read_text()))
    assert fired == {rule["alert"] for rule in ALERTS}


@needs_promtool
@pytest.mark.parametrize(
    "command", [["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]], ids=" ".join
)
def test_promtool_accepts(command: list[str]) -> None:
    run = subprocess.run(["promtool", *command], cwd=MONITORING, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@needs_promtool
def test_promtool_finds_no_fault_in_what_is_exposed() -> None:
    telemetry = Telemetry(rank=0, host="h", job="j")
    with urllib.request.urlopen(f"http://127.0.0.1:{telemetry.serve(0)}/metrics", timeout=30) as response:
        text = response.read()
    telemetry.close()
    run = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (run.returncode, run.stdout + run.stderr) == (0, b"")


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[str]:
    """A real Prometheus on the shipped files copied to tmp_path, a run's folder; its base URL."""
    shutil.copy(MONITORING / "alerts.yml", tmp_path)
    config = tmp_path / "prometheus.yml"
    config.write_text((MONITORING / "prometheus.yml").read_text().replace("5s", "200ms"))
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={tmp_path / 'tsdb'}",
                "--web.listen-address=127.0.0.1:0",
            ],
            stderr=stream,
        )
    try:
        match = wait_for(lambda: re.search(r"address=127.0.0.1:([1-9]\d*)", log.read_text()))
        yield f"http://127.0.0.1:{match[1]}"
    finally:
        process.kill()
        process.wait()


def wait_for(ready: Any) -> Any:
    deadline = time.monotonic() + 60  # a hang becomes a failure
    while not (result := ready()):
        assert time.monotonic() < deadline, "Prometheus did not get there"
        time.sleep(0.1)
    return result


def query(base: str, expression: str) -> list[tuple[dict[str, str], float]]:
    url = f"{base}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    with urllib.request.urlopen(url, timeout=30) as response:
        result = json.load(response)["data"]["result"]
    return [(sample["metric"], float(sample["value"][1])) for sample in result]


@needs_prometheus
def test_prometheus_finds_ranks_keeps_their_labels_and_sees_one_go(prometheus: str, tmp_path: Path) -> None:
    ranks = [Telemetry(rank=rank, host=f"h{rank}", job="a/b") for rank in range(2)]
    for rank, telemetry in enumerate(ranks):
        telemetry.set("loss", 1.5 + rank)
        telemetry.serve(0)
        telemetry.announce(tmp_path / "targets")
    found = wait_for(lambda: len(got := query(prometheus, "spherescale_loss")) == 2 and got)
    losses = {(labels["job"], labels["rank"], labels["host"]): value for labels, value in found}
    assert losses == {("a/b", "0", "h0"): 1.5, ("a/b", "1", "h1"): 2.5}

    ranks[1].close(finished=False)
    down = wait_for(lambda: query(prometheus, 'up{rank!=""} == 0'))
    assert [(labels["job"], labels["rank"], labels["host"]) for labels, _ in down] == [("a/b", "1", "h1")]

    ranks[0].close()
    wait_for(lambda: len(query(prometheus, "up")) == 1)  # ended well: no target, no alert
