"""`make monitor` on a real run of two ranks: every panel has data, a real browser draws it, Ctrl-C ends all."""

from __future__ import annotations

import contextlib
import html
import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.monitoring.panels import PANELS, TILES, Panel
from tests.end_to_end.browser import CHROMIUM, draw, picture
from tests.end_to_end.launcher import start_training, write_recipe
from tests.faces import ROOT, write_shards

pytestmark = [
    pytest.mark.skipif(not shutil.which("prometheus"), reason="needs prometheus (Debian: apt-get install prometheus)"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian: apt-get install chromium)"),
]
ALWAYS = [panel for panels in PANELS.values() for panel in panels if not panel.sometimes]
PATIENCE_SECONDS = 240


def wait_for(ready: Callable[[], Any], missing: object = "") -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS  # a hang becomes a failure
    while not (result := ready()):
        assert time.monotonic() < deadline, f"did not get there: {missing}"
        time.sleep(0.5)
    return result


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """The folder of a run on two ranks that goes on for as long as the test."""
    shards = write_shards(tmp_path / "set")
    recipe = write_recipe(tmp_path / "recipe.yaml", shards, steps=10**7, port=0)
    # Nobody reads what it says: few words, or the pipe would fill and the run stand still.
    quiet = ["--set", "log.every=1000", "--set", "checkpoint.every=500"]
    process = start_training(tmp_path, 2, "--recipe", recipe, "--run", "faces", *quiet)
    folder = tmp_path / "faces"
    try:
        wait_for(lambda: len(list((folder / "targets").glob("*.json"))) == 2)
        yield folder
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def monitor(run: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`make monitor` on the run as a user starts it, and the page's URL."""
    command = ["make", "-s", "monitor", f"RUN={run}", "ARGS=--port 0 --prometheus-port 0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"watching \S+: (http://\S+)", line)
        assert found, line
        yield process, found[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        process.communicate()


def answers(page: str, query: str) -> bool:
    filled = query.replace("$job", "faces").replace("$window", "30s")
    with urllib.request.urlopen(f"{page}/api/v1/query?{urllib.parse.urlencode({'query': filled})}", timeout=60) as got:
        return bool(json.load(got)["data"]["result"])


def cards(document: str) -> dict[str, str]:
    """The panels of a drawn page: title -> markup."""
    found = re.findall(r'<article class="panel" data-title="(.*?)"(.*?)</article>', document, re.DOTALL)
    return {html.unescape(title): markup for title, markup in found}


def is_drawn(panel: Panel, card: str) -> bool:
    mark = "<canvas" if panel.kind == "heatmap" else r'<path class="curve" d="M\d'
    return bool(re.search(mark, card)) and 'data-series="0"' not in card


def processes_of(run: Path) -> list[str]:
    """Command lines that name the run's Prometheus."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ends meanwhile
            found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in found if f"--storage.tsdb.path={run}/prometheus" in line]


def test_every_panel_is_drawn_from_a_real_run(
    run: Path, monitor: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    process, page = monitor
    empty = {query for panel in ALWAYS for query, _ in panel.queries} | {tile.query for tile in TILES}

    def all_answer() -> bool:
        for query in list(empty):
            if answers(page, query):
                empty.discard(query)
        return not empty

    wait_for(all_answer, missing=empty)

    def all_drawn() -> str | None:
        drawn = draw(page, tmp_path)
        assert drawn.console == ()
        found = cards(drawn.document)
        assert set(found) == {panel.title for panels in PANELS.values() for panel in panels}
        return drawn.document if all(is_drawn(panel, found[panel.title]) for panel in ALWAYS) else None

    document = wait_for(all_drawn)
    state = re.search(r'<span id="state" role="status" class="(.*?)">(.*?)</span>', document)
    assert state and state[1] == "" and state[2].startswith("as of"), state
    assert re.search(r'<h1 id="name">faces</h1>', document)
    tiles = re.findall(r'<div class="tile"><b>(.*?)</b>', document)
    assert len(tiles) == len(TILES) and "–" not in tiles
    assert picture(page, tmp_path, tmp_path / "page.png", 2600).stat().st_size > 50_000

    assert processes_of(run)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=PATIENCE_SECONDS)
    assert not processes_of(run)


LABELS = """<script src="charts.js"></script>
<script>
const axes = [[ticks(1.002, 1.018), ""], [ticks(0, 3000), ""], [ticks(99990, 100010), ""], [ticks(2, 9), "seconds"]];
document.body.textContent = JSON.stringify(axes.map(([marks, unit]) => labels(marks, unit)));
</script>"""


def test_the_marks_of_an_axis_are_told_apart(tmp_path: Path) -> None:
    shutil.copy(ROOT / "cluster/monitoring/page/charts.js", tmp_path)
    (tmp_path / "page.html").write_text(f"<body></body>{LABELS}")
    drawn = draw((tmp_path / "page.html").as_uri(), tmp_path)
    assert drawn.console == ()
    axes = json.loads(html.unescape(re.findall(r"<body>(.*?)</body>", drawn.document, re.DOTALL)[0]))
    assert axes[0] == ["1", "1.005", "1.01", "1.015", "1.02"]
    assert axes[1] == ["0", "1,000", "2,000", "3,000"]
    assert axes[2] == ["99990", "99995", "100 k", "100.005 k", "100.01 k"]
    assert axes[3] == ["2 s", "4 s", "6 s", "8 s", "10 s"]
