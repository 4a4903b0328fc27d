"""A new metric takes a row, a panel and the place that computes it: shown on a copy of the package with only those."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faces import ROOT
from tests.unit.cluster.monitoring.test_monitoring import needs_prometheus

# The edits of docs/monitoring.md: file, the line after which the new one goes, and the new one.
ROW = ("metrics.py", "\nMETRICS = (\n", '    Metric("whisker_bytes", "gauge", "Length of the whiskers.", "bytes"),\n')
PANEL = (
    "monitoring/panels.py",
    '    "head": (\n',
    '        Panel("Whiskers", "Longer is better.", _gauge("whisker_bytes", "whiskers"), "bytes"),\n',
)

# Where it is computed: a process of its own, which a real Prometheus scrapes.
PROGRAM = """
import json, sys, time, urllib.parse, urllib.request
from pathlib import Path
from cluster.monitoring import live
from cluster.telemetry import Telemetry

run = Path(sys.argv[1])
live.configure(run)
config = run / "prometheus.yml"
config.write_text(config.read_text().replace("5s", "500ms"))
with Telemetry(rank=0, host="h", job="cats") as telemetry, live.prometheus(run, 0) as base:
    telemetry.set("whisker_bytes", 7)
    telemetry.serve(0)
    telemetry.announce(run / "targets")
    query = urllib.parse.urlencode({"query": 'max(spherescale_whisker_bytes{job="cats"})'})
    deadline, result = time.monotonic() + 240, []
    while not result and time.monotonic() < deadline:
        with urllib.request.urlopen(f"{base}/api/v1/query?{query}", timeout=30) as answer:
            result = json.load(answer)["data"]["result"]
        time.sleep(0.1)
print(json.dumps([float(one["value"][1]) for one in result]))
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with a copy of `cluster` that has the two new lines, and the runbooks that it reads."""
    for name in ("cluster", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file, after, line in (ROW, PANEL):
        text = (tmp_path / "cluster" / file).read_text()
        assert text.count(after) == 1
        (tmp_path / "cluster" / file).write_text(text.replace(after, after + line))
    return tmp_path


def python(package: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=package,
        env=environment | {"PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_prometheus
def test_prometheus_scrapes_it(package: Path) -> None:
    (package / "run").mkdir()
    assert json.loads(python(package, "-c", PROGRAM, "run")) == [7.0]


def test_one_command_puts_it_into_the_dashboard(package: Path) -> None:
    pytest.importorskip("grafana_foundation_sdk", reason="needs grafana-foundation-sdk")
    grafana = package / "cluster" / "monitoring" / "grafana"
    before = {path.name: path.read_text() for path in grafana.glob("*.json")}
    python(package, "-m", "cluster.monitoring.dashboards")
    after = {path.name: path.read_text() for path in grafana.glob("*.json")}
    assert {name for name in after if after[name] != before.get(name)} == {"head.json"}
    first = json.loads(after["head.json"])["panels"][0]
    assert (first["title"], first["description"]) == ("Whiskers", "Longer is better.")
    assert [target["expr"] for target in first["targets"]] == ['max(spherescale_whisker_bytes{job="$job"})']
    assert first["fieldConfig"]["defaults"]["unit"] == "bytes"


def test_the_live_page_has_its_panel(package: Path) -> None:
    page = python(package, "-c", "from cluster.monitoring.live import build_page; print(build_page())")
    table = re.search(r'<script type="application/json" id="table">(.*?)</script>', page, re.DOTALL)
    assert table is not None
    assert json.loads(table[1])["panels"]["head"][0] == {
        "title": "Whiskers",
        "about": "Longer is better.",
        "queries": [['max(spherescale_whisker_bytes{job="$job"})', "whiskers"]],
        "unit": "bytes",
        "kind": "lines",
        "logarithmic": False,
        "lowest_first": False,
        "if_empty": "",
        "of_margin": False,
    }
