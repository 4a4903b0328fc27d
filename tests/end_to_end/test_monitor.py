"""`make monitor` on a real run of two ranks: every panel has data, a real browser draws it, Ctrl-C ends everything.

One rank is slowed down, and the page names it.
"""

from __future__ import annotations

import contextlib
import html
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from cluster.monitoring import live
from cluster.monitoring.panels import PANELS, TILES, Panel
from cluster.telemetry import Telemetry
from tests.end_to_end.browser import CHROMIUM, draw, picture
from tests.end_to_end.launcher import start_training, write_recipe
from tests.faces import ROOT, write_faces, write_pairs, write_shards

pytestmark = [
    pytest.mark.skipif(not shutil.which("prometheus"), reason="needs prometheus (Debian: apt-get install prometheus)"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian: apt-get install chromium)"),
]
SLOWEST = "Extra time of the slowest ranks, by part"
DRAWN = [panel for panels in PANELS.values() for panel in panels if not panel.if_empty.startswith("no GPU")]
PATIENCE_SECONDS = 240


def wait_for(ready: Callable[[], Any], missing: object = "") -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS  # a hang becomes a failure
    while not (result := ready()):
        assert time.monotonic() < deadline, f"not seen in time: {missing}"
        time.sleep(0.5)
    return result


def write_strangers(folder: Path) -> str:
    """Images of four people and all of their pairs, as a section of a recipe."""
    faces = write_faces(folder / "strangers", identities=4, images=3, seed=9)
    return f"{{images: {faces}, pairs: {write_pairs(faces)}}}"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """The folder of a run on two ranks that lasts as long as the test."""
    shards = write_shards(tmp_path / "set")
    recipe = write_recipe(tmp_path / "recipe.yaml", shards, steps=10**7, port=0)
    with recipe.open("a") as lines:
        lines.write(f"evaluation: {{sets: {{strangers: {write_strangers(tmp_path)}}}, resamples: 20}}\n")
    # Its output is not read: it must be short, or the pipe would fill and block the run.
    quiet = ["--set", "log.every=1000", "--set", "checkpoint.every=100", "--set", "optimizer.clip_norm=100"]
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


def answer(page: str, query: str) -> list[dict[str, Any]]:
    filled = query.replace("$job", "faces").replace("$window", "30s")
    with urllib.request.urlopen(f"{page}/api/v1/query?{urllib.parse.urlencode({'query': filled})}", timeout=60) as got:
        return list(json.load(got)["data"]["result"])


def process_of(rank: int, folder: Path) -> int:
    """The process of a rank whose launcher was started in `folder`."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ends meanwhile
            words = (process / "cmdline").read_bytes().split(b"\0")
            if f"--local_rank={rank}".encode() in words and (process / "cwd").readlink() == folder:
                return int(process.name)
    raise AssertionError(f"no rank {rank} in {folder}")


@contextlib.contextmanager
def slowed(process: int) -> Iterator[None]:
    """Stop a process for four fifths of the time: its own work takes five times as long, on any machine."""
    enough = Event()

    def hold() -> None:
        while not enough.is_set():
            os.kill(process, signal.SIGSTOP)
            time.sleep(0.16)
            os.kill(process, signal.SIGCONT)
            enough.wait(0.04)

    thread = Thread(target=hold)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()


def named(page: str) -> list[tuple[str, str]]:
    """The job and rank of each reported straggler."""
    firing = answer(page, 'ALERTS{alertname="Straggler", alertstate="firing"}')
    return [(one["metric"]["job"], one["metric"]["rank"]) for one in firing]


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


def left_out(document: str) -> set[str]:
    """Titles of the panels that the page does not show."""
    return set(re.findall(r'<article class="panel" data-title="([^"]*)"[^>]* hidden=', document))


def test_every_panel_is_drawn_from_a_real_run(
    run: Path, monitor: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    process, page = monitor
    empty = {query for panel in DRAWN if panel.title != SLOWEST for query, _ in panel.queries}
    empty |= {tile.query for tile in TILES}

    def all_answer() -> bool:
        for query in list(empty):
            if answer(page, query):
                empty.discard(query)
        return not empty

    wait_for(all_answer, missing=empty)

    def all_drawn() -> str | None:
        drawn = draw(page, tmp_path)
        assert drawn.console == ()
        found = cards(drawn.document)
        assert set(found) == {panel.title for panels in PANELS.values() for panel in panels}
        return drawn.document if all(is_drawn(panel, found[panel.title]) for panel in DRAWN) else None

    with slowed(process_of(1, tmp_path)):
        document = wait_for(all_drawn)
        wait_for(lambda: named(page) == [("faces", "1")], missing="an alert on rank 1")
        work = answer(page, "topk(1, rank:spherescale_own_work:over_others)")
        alerts = draw(page, tmp_path).document.partition('<section id="alerts"')[2].partition("</section>")[0]
        assert picture(page, tmp_path, tmp_path / "page.png", 3400).stat().st_size > 50_000
    assert [one["metric"]["rank"] for one in work] == ["1"]
    slow = rf"faces: rank 1 on {re.escape(socket.gethostname())} takes [\d.]+ times as long as other ranks"
    assert re.search(slow, html.unescape(alerts))
    assert re.search(r"ticket, for [\d.]{1,5} (s|min)<", alerts)

    state = re.search(r'<span id="state" role="status" class="(.*?)">(.*?)</span>', document)
    assert state and state[1] == "" and state[2].startswith("as of"), state
    assert re.search(r'<h1 id="name">faces</h1>', document)
    assert left_out(document) == set()
    tiles = re.findall(r'<div class="tile"><b>(.*?)</b>', document)
    assert len(tiles) == len(TILES) and "–" not in tiles
    assert processes_of(run)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=PATIENCE_SECONDS)
    assert not processes_of(run)


@contextlib.contextmanager
def working(ranks: list[Telemetry]) -> Iterator[None]:
    """Report two steps a second on every rank, of which rank 10 works nine tenths and the others wait."""
    enough = Event()

    def work() -> None:
        while not enough.wait(0.5):
            for rank, telemetry in enumerate(ranks):
                own = 0.45 if rank == 10 else 0.15
                telemetry.add("step_part_seconds_total", own, "forward")
                telemetry.add("step_part_seconds_total", 0.5 - own, "communication")

    thread = Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()


def test_of_many_ranks_the_slowest_comes_first(tmp_path: Path) -> None:
    """Twelve ranks wait for rank 10, which is slow: least communication, most work of its own."""
    live.configure(tmp_path)
    config = tmp_path / "prometheus.yml"
    config.write_text(config.read_text().replace("5s", "2s"))
    with contextlib.ExitStack() as stack:
        ranks = [stack.enter_context(Telemetry(rank=rank, host="h", job="faces")) for rank in range(12)]
        for telemetry in ranks:
            telemetry.set("ranks", 12)
            telemetry.serve(0)
            telemetry.announce(tmp_path / "targets")
        page = stack.enter_context(live.serving("127.0.0.1", 0, stack.enter_context(live.prometheus(tmp_path, 0))))
        stack.enter_context(working(ranks))

        def legend() -> list[str]:
            """The legend of the panel, once the scrapes of every rank contain some steps."""
            if len(answer(page, "rate(spherescale_samples_total[20s])")) < 12:
                return []
            document = draw(page, tmp_path).document
            # Nothing has set what only some margins have.
            assert left_out(document) == {"Margin angle beyond pi", "Margin lambda"}
            card = cards(document)["Communication by rank"]
            named = re.findall(r"rank \d+ on h|and \d+ more, \w+", card)
            # On a busy machine a rank whose scrape is late is not drawn yet.
            is_whole = named[:1] == ["rank 10 on h"] and named[-1] == "and 8 more, higher"
            return named if is_whole else []

        assert len(wait_for(legend, missing="rank 10 first of twelve")) == 5


LABELS = """<link rel="stylesheet" href="style.css"><div class="plot" style="width: 345px"></div>
<script src="charts.js"></script>
<script>
const axes = [[ticks(1.002, 1.018), ""], [ticks(0, 3000), ""], [ticks(99990, 100010), ""], [ticks(2, 9), "seconds"]];
const plot = document.querySelector(".plot");
drawLines(plot, { kind: "lines", unit: "" }, [{ name: "", points: [[0, 99990], [60, 100010]] }], [0, 60]);
const left = Math.min(...[...plot.querySelectorAll("text")].map(text => text.getBBox().x));
axes.push([scale([1], false, "share").marks, "share"]);
document.body.textContent = JSON.stringify([left, ...axes.map(([marks, unit]) => labels(marks, unit))]);
</script>"""


def test_the_marks_of_an_axis_are_distinct_and_whole(tmp_path: Path) -> None:
    for file in ("charts.js", "style.css"):
        shutil.copy(ROOT / "cluster/monitoring/page" / file, tmp_path)
    (tmp_path / "page.html").write_text(f"<body></body>{LABELS}")
    drawn = draw((tmp_path / "page.html").as_uri(), tmp_path)
    assert drawn.console == ()
    left, *axes = json.loads(html.unescape(re.findall(r"<body>(.*?)</body>", drawn.document, re.DOTALL)[0]))
    assert left >= 0  # none is cut
    assert axes[0] == ["1", "1.005", "1.01", "1.015", "1.02"]
    assert axes[1] == ["0", "1,000", "2,000", "3,000"]
    assert axes[2] == ["99990", "99995", "100 k", "100.005 k", "100.01 k"]
    assert axes[3] == ["2 s", "4 s", "6 s", "8 s", "10 s"]
    assert axes[4] == ["40 %", "60 %", "80 %", "100 %"]
