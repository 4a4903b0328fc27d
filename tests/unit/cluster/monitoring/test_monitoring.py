"""The monitoring files against the table of metrics, promtool, and a real Prometheus."""

import json
import math
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from cluster.metrics import METRICS, PREFIX, SHARDING_METRICS, evaluation_metrics
from cluster.monitoring import live
from cluster.monitoring.panels import PANELS, TILES
from cluster.monitoring.runbooks import read_runbooks
from cluster.monitoring.sharding_panels import SHARDING
from cluster.telemetry import Telemetry

MONITORING = Path(__file__).parents[4] / "cluster" / "monitoring"
RULES = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]
TABLE = METRICS + evaluation_metrics(["lfw"])
BOARDS = PANELS | {"shards": SHARDING}
RUNBOOKS = read_runbooks()
ALERTS = [rule for rule in RULES if "alert" in rule]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}

needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="needs promtool (Debian: apt-get install prometheus)"
)
needs_prometheus = pytest.mark.skipif(
    not shutil.which("prometheus"), reason="needs prometheus (Debian: apt-get install prometheus)"
)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def exposed_names() -> set[str]:
    names = set()
    for metric in TABLE + SHARDING_METRICS:
        suffixes = ("_sum", "_count", "_bucket") if metric.kind == "histogram" else ("",)
        names |= {PREFIX + metric.name + suffix for suffix in suffixes}
    return names


def unknown_names(expression: str) -> set[str]:
    """Metrics and recorded series of a query that do not exist."""
    recorded = set(re.findall(rf"(?:rank|job):{PREFIX}[\w:]+", expression))
    exposed = set(re.findall(rf"(?<!:){PREFIX}\w+", expression))
    return (recorded - RECORDED) | (exposed - exposed_names())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_reads_what_exists(rule: dict[str, Any]) -> None:
    assert unknown_names(rule["expr"]) == set()
    assert unknown_names("spherescale_los + job:spherescale_nothing:ratio") == {
        "spherescale_los",
        "job:spherescale_nothing:ratio",
    }


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    name = rule["alert"]
    assert rule["annotations"]["runbook"] == f"docs/runbooks.md#{name.lower()}"
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["description"].endswith(".")
    assert unknown_names(rule["annotations"]["description"]) == set()
    assert rule["labels"]["severity"] in {"page", "ticket"}
    runbook = RUNBOOKS[name]
    assert runbook.meaning and runbook.shows and len(runbook.steps) >= 2
    assert unknown_names(runbook.query) == set()
    assert unknown_names(" ".join(runbook.steps)) == set()


def test_every_runbook_has_its_alert() -> None:
    assert set(RUNBOOKS) == {rule["alert"] for rule in ALERTS}


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
def test_promtool_finds_no_fault_in_a_scrape() -> None:
    telemetry = Telemetry(rank=0, host="h", job="j", metrics=TABLE)
    set_gauges(telemetry)
    with urllib.request.urlopen(f"http://127.0.0.1:{telemetry.serve(0)}/metrics", timeout=30) as response:
        text = response.read()
    telemetry.close()
    run = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (run.returncode, run.stdout + run.stderr) == (0, b"")


def set_gauges(telemetry: Telemetry) -> None:
    """Give every gauge of a run a value."""
    for metric in TABLE:
        for value in metric.values or ("",):
            if metric.kind == "gauge":
                telemetry.set(metric.name, 0.5, value)


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[str]:
    """A real Prometheus as `make monitor` starts it on tmp_path, but with frequent scrapes; its base URL."""
    live.configure(tmp_path)
    config = tmp_path / "prometheus.yml"
    config.write_text(config.read_text().replace("5s", "200ms"))
    with live.prometheus(tmp_path, 0) as base:
        yield base


def wait_for(ready: Callable[[], Any], missing: object = "") -> Any:
    deadline = time.monotonic() + 240  # a hang becomes a failure
    while not (result := ready()):
        assert time.monotonic() < deadline, f"not seen by Prometheus: {missing}"
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

    def down() -> list[tuple[str, str, str]]:
        found = query(prometheus, 'up{rank!=""} == 0')
        return [(labels["job"], labels["rank"], labels["host"]) for labels, _ in found]

    # Waited for exactly: a scrape of the other rank, too, can take too long on a busy machine.
    wait_for(lambda: down() == [("a/b", "1", "h1")])

    ranks[0].close()
    wait_for(lambda: len(query(prometheus, "up")) == 1)  # ended normally: no target, no alert


@needs_prometheus
@pytest.mark.skipif(not has_ipv6(), reason="needs IPv6 on loopback")
def test_prometheus_finds_an_endpoint_on_ipv6_whose_port_was_in_use(prometheus: str, tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET6) as taken, Telemetry(rank=0, host="h", job="j") as telemetry:
        taken.bind(("::1", 0))
        taken.listen()
        busy = taken.getsockname()[1]
        port = telemetry.serve(busy, "::1")
        assert port not in (None, busy)
        file = telemetry.announce(tmp_path / "targets")
        assert json.loads(file.read_text())[0]["targets"] == [f"[::1]:{port}"]
        wait_for(lambda: [value for labels, value in query(prometheus, "up") if labels["job"] == "j"] == [1])


def test_every_metric_is_read_by_a_panel_or_an_alert() -> None:
    read = " ".join(
        [query for group in BOARDS.values() for panel in group for query, _ in panel.queries]
        + [tile.query for tile in TILES]
        + [rule["expr"] for rule in RULES]
    )
    # The panels have the peak instead of the memory now.
    unread = {"gpu_allocated_bytes"}
    table = TABLE + SHARDING_METRICS
    assert {m.name for m in table if not re.search(rf"{PREFIX}{m.name}\b|{PREFIX}{m.name}_", read)} == unread


def test_the_committed_dashboards_are_current() -> None:
    dashboards = pytest.importorskip("cluster.monitoring.dashboards", reason="needs grafana-foundation-sdk")
    assert {path.stem for path in dashboards.FOLDER.glob("*.json")} == set(BOARDS)
    for group in BOARDS:
        committed = (dashboards.FOLDER / f"{group}.json").read_text()
        assert committed == dashboards.build(group), "run: python -m cluster.monitoring.dashboards"


def test_a_dashboard_holds_its_panels() -> None:
    for group, panels in BOARDS.items():
        board = json.loads((MONITORING / "grafana" / f"{group}.json").read_text())
        assert [panel["title"] for panel in board["panels"]] == [panel.title for panel in panels]
        for drawn, panel in zip(board["panels"], panels, strict=True):
            assert [target["expr"].replace("$__rate_interval", "$window") for target in drawn["targets"]] == [
                query for query, _ in panel.queries
            ]
            assert len({target["refId"] for target in drawn["targets"]}) == len(panel.queries)


@pytest.fixture
def busy_gpus(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Shares of the time that two GPUs are busy, from a fake NVML, which torch reads like a real one."""
    nvml = pytest.importorskip("pynvml", reason="needs nvidia-ml-py")
    percent = [30, 80]
    monkeypatch.setattr(nvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(nvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(nvml, "nvmlDeviceGetUtilizationRates", lambda index: SimpleNamespace(gpu=percent[index]))
    return [0.01 * each for each in percent]


@needs_prometheus
def test_every_panel_has_data_from_two_ranks(prometheus: str, tmp_path: Path, busy_gpus: list[float]) -> None:
    ranks = [
        Telemetry(rank=rank, host=f"h{rank}", job="a/b", cuda_device=rank, metrics=TABLE, folder=tmp_path)
        for rank in range(2)
    ]
    for telemetry in ranks:
        set_gauges(telemetry)
        telemetry.serve(0)
        telemetry.announce(tmp_path / "targets")
    # Sharding runs at the same time.
    shard = Telemetry(rank=2, host="h2", job="a/b", metrics=SHARDING_METRICS)
    shard.set("samples_to_shard", 1_000_000)
    shard.serve(0)
    shard.announce(tmp_path / "targets")
    panels = [panel for group in BOARDS.values() for panel in group]
    queries = [query for panel in panels for query, _ in panel.queries] + [tile.query for tile in TILES]
    empty = set(queries)

    def train_and_look() -> bool:
        shard.add("sharded_samples_total", 100)
        shard.add("sharded_bytes_total", 10_000)
        for telemetry in ranks:
            telemetry.observe("step_seconds", 0.3)
            telemetry.add("samples_total", 64)
            # the second rank is slower
            telemetry.add("step_part_seconds_total", 0.3 + 0.1 * (telemetry is ranks[1]), "forward")
            telemetry.add("lost_seconds_total", 0.1, "data_wait")
            telemetry.checkpoint_saved(0.1)
        for query_text in sorted(empty):
            got = query(prometheus, query_text.replace("$job", "a/b").replace("$window", "5s"))
            if got and all(math.isfinite(value) for _, value in got):
                empty.discard(query_text)
        return not empty

    wait_for(train_and_look, missing=empty)
    panel = next(panel for panel in PANELS["ranks"] if panel.title == "GPU utilisation")
    gpus = panel.queries[0][0].replace("$job", "a/b")
    busy = pytest.approx({"0": busy_gpus[0], "1": busy_gpus[1]}, abs=1e-9)
    # Waited for: on a busy machine a scrape can time out, and the series of a rank is gone until the next.
    wait_for(lambda: {labels["rank"]: value for labels, value in query(prometheus, gpus)} == busy)
    for telemetry in (*ranks, shard):
        telemetry.close()
