"""The live page of a run that is gone, or hangs: drawn by a real browser from a real Prometheus with hours of data.

The hours are written by promtool into Prometheus' folder before it starts, so that no test waits for them.
"""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.monitoring import live
from cluster.monitoring.panels import TILES
from cluster.telemetry import Telemetry
from tests.end_to_end.browser import CHROMIUM, draw
from tests.unit.cluster.monitoring.test_monitoring import query, wait_for

pytestmark = [
    pytest.mark.skipif(not shutil.which("prometheus"), reason="needs prometheus (Debian: apt-get install prometheus)"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian: apt-get install chromium)"),
]
SCRAPE_SECONDS = 15
LABELS = 'job="faces",rank="0",host="h"'
PRESENT = {tile.title for tile in TILES if tile.present}


def write_history(run: Path, begin: float, end: float, moving_until: float, planned: int) -> None:
    """What Prometheus keeps of a run that is scraped from `begin` to `end` and makes two steps a second for a while.

    Step 0 is at `begin`; times are unix seconds.
    """
    times = [begin + SCRAPE_SECONDS * n for n in range(int((end - begin) / SCRAPE_SECONDS) + 1)]
    steps = [2 * (min(t, moving_until) - begin) for t in times]
    moves = [2.0 * (t <= moving_until) for t in times]
    series = {
        f"up{{{LABELS}}}": [1.0] * len(times),
        f"spherescale_ranks{{{LABELS}}}": [1.0] * len(times),
        f"spherescale_planned_steps{{{LABELS}}}": [float(planned)] * len(times),
        f"spherescale_step{{{LABELS}}}": steps,
        f"spherescale_loss{{{LABELS}}}": [4.25] * len(times),
        f"spherescale_step_seconds_count{{{LABELS}}}": steps,
        f"spherescale_checkpoint_timestamp_seconds{{{LABELS}}}": [begin for _ in times],
        f"spherescale_checkpoint_age_seconds{{{LABELS}}}": [t - begin for t in times],
        f"spherescale_samples_total{{{LABELS}}}": [64 * step for step in steps],
        'job:spherescale_steps:rate1m{job="faces"}': moves,
        'job:spherescale_steps_left:min{job="faces"}': [planned - step for step in steps],
    }
    lines: list[str] = []
    for name, values in series.items():
        lines.append(f"# TYPE {name.partition('{')[0]} unknown")
        lines += [f"{name} {value} {t:.3f}" for t, value in zip(times, values, strict=True)]
    text = run / "history.txt"
    text.write_text("\n".join([*lines, "# EOF", ""]))
    command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", str(text), str(run / "prometheus")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class Page:
    """What a drawn page says."""

    tiles: dict[str, tuple[str, str]]
    """Title -> value, and its age if one is shown."""
    condition: str
    """Class and text of the line above the alerts."""
    state: str

    @staticmethod
    def drawn(url: str, folder: Path) -> Page:
        drawn = draw(url, folder)
        assert drawn.console == ()
        tile = r'<div class="tile"><b>(.*?)</b><span>(.*?)</span>(?:<small>(.*?)</small>)?</div>'
        tiles = {html.unescape(title): (value, age) for value, title, age in re.findall(tile, drawn.document)}
        line = re.search(r'<div class="(quiet|gone)">(.*?)</div>', drawn.document)
        state = re.search(r'<span id="state" role="status" class="(.*?)">(.*?)</span>', drawn.document)
        return Page(tiles, f"{line[1]}: {line[2]}" if line else "", f"{state[1]}: {state[2]}" if state else "")


def test_a_run_that_is_gone_has_its_last_values_with_their_age(tmp_path: Path) -> None:
    live.configure(tmp_path)
    end = time.time() - 3 * 3600
    write_history(tmp_path, end - 3000, end, end, planned=10_000)
    with live.prometheus(tmp_path, 0) as base, live.serving("127.0.0.1", 0, base) as url:
        page = Page.drawn(url, tmp_path)
    assert page.tiles["Step"] == ("6,000 of 10,000", "3 h ago")
    assert page.tiles["Loss"] == ("4.25", "3 h ago")
    assert {page.tiles[title] for title in PRESENT} == {("–", "")}
    assert page.tiles["Last checkpoint"] == ("3.8 h ago", "")  # it was saved 50 minutes before the end
    ended = time.strftime("%H:%M", time.localtime(end))
    assert page.condition == f"gone: Ended {ended}, step 6,000 of 10,000."  # its ranks deleted their targets
    assert page.state.startswith("lost: last scrape: ")


def test_a_run_that_ended_after_its_last_step_is_not_green_either(tmp_path: Path) -> None:
    live.configure(tmp_path)
    # Longer ago than the page looks at first, and between two full hours: short runs are found too.
    end = (time.time() - 20 * 86400) // 3600 * 3600 + 3150
    write_history(tmp_path, end - 3000, end, end, planned=6000)
    with live.prometheus(tmp_path, 0) as base, live.serving("127.0.0.1", 0, base) as url:
        page = Page.drawn(url, tmp_path)
    assert page.tiles["Step"] == ("6,000 of 6,000", "20 d ago")
    day = time.strftime("%-d %b", time.localtime(end))
    assert re.fullmatch(rf"gone: Ended {day}, \d\d:\d\d, step 6,000 of 6,000\.", page.condition)


def test_a_run_that_hangs_has_no_speed_and_no_time_left(tmp_path: Path) -> None:
    """It is scraped until after now, but makes no step any more."""
    live.configure(tmp_path)
    moved = time.time() - 1800
    write_history(tmp_path, moved - 3000, time.time() + 900, moved, planned=10_000)
    with live.prometheus(tmp_path, 0) as base, live.serving("127.0.0.1", 0, base) as url:
        page = Page.drawn(url, tmp_path)
    assert page.tiles["Step"] == ("6,000 of 10,000", page.tiles["Loss"][1])
    assert re.fullmatch(r"3\d min ago", page.tiles["Loss"][1])
    assert page.tiles["Samples per second"] == ("0", "")
    assert page.tiles["Time left"] == ("–", "")
    assert page.tiles["Ranks that answer"] == ("1", "")
    assert re.match(r"gone: No training step for about 3\d min\.", page.condition)


def test_a_run_that_trains_has_its_speed_and_is_green_until_prometheus_is_gone(tmp_path: Path) -> None:
    live.configure(tmp_path)
    now = time.time()
    write_history(tmp_path, now - 3000, now + 900, now + 900, planned=10_000)
    with live.prometheus(tmp_path, 0) as base, live.serving("127.0.0.1", 0, base) as url:
        page = Page.drawn(url, tmp_path)
        assert page.tiles["Samples per second"] == ("128", "")
        assert re.fullmatch(r"[23]\d(\.\d)? min", page.tiles["Time left"][0])
        assert {age for _, age in page.tiles.values()} == {""}
        assert (page.condition, page.state[:7]) == ("quiet: No alert is firing", ": as of")


def test_a_rank_that_is_killed_takes_the_green_away(tmp_path: Path) -> None:
    """From a real endpoint: announced, scraped, and closed as if killed."""
    live.configure(tmp_path)
    with live.prometheus(tmp_path, 0) as base, live.serving("127.0.0.1", 0, base) as url:
        telemetry = Telemetry(rank=0, host="h", job="faces")
        for name, value in (("ranks", 1), ("planned_steps", 100), ("step", 30), ("loss", 4.25)):
            telemetry.set(name, value)
        telemetry.serve(0)
        telemetry.announce(tmp_path / "targets")
        wait_for(lambda: query(base, "job:spherescale_steps_left:min"))
        assert Page.drawn(url, tmp_path).condition.startswith("gone: No step seen yet: ")
        telemetry.close(finished=False)
        wait_for(lambda: query(base, 'up{job="faces"} == 0'))
        page = Page.drawn(url, tmp_path)
    assert page.tiles["Loss"][0] == "4.25" and page.tiles["Loss"][1].endswith(" s ago")
    assert page.tiles["Ranks that answer"] == ("–", "")
    assert re.fullmatch(
        r"gone: No rank answers: the last scrape was [\d.]+ (s|min) ago, step 30 of 100\.", page.condition
    )
