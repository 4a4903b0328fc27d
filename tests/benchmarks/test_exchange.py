"""A step of the backbone on two and three hosts over throttled links: exchanged under the backward pass, and planned.

Its floor is the larger of computing and sending, each measured alone in the same run. The hosts are network namespaces
whose links the kernel throttles (token buckets) and a process delays, once with computing on the processors that also
exchange, and once with layers that wait, as for a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.results import write
from tests.benchmarks.slow_links import slow_links
from tests.end_to_end.hosts import Hosts, run, why_not

DELAY_SECONDS = 0.002
# Hosts, rate, images of a rank: around computing = sending, where the least of either can be hidden under the other,
# and with twice as much to compute as there is to send.
SETTINGS = [
    (2, "1gbit", 8),
    (2, "750mbit", 8),
    (2, "400mbit", 8),
    (3, "1gbit", 8),
    (2, "1gbit", 16),
    (3, "1gbit", 16),
]


def throttle(hosts: Hosts, number: int, rate: str) -> None:
    """Let a host send no faster than that."""
    bucket = ["root", "tbf", "rate", rate, "burst", "256kb", "latency", "50ms"]
    run("ip", "netns", "exec", hosts.space(number), "tc", "qdisc", "replace", "dev", "eth1", *bucket)


def ratios(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """What was measured in one form of computing, over its floor, over what could be hidden, and over the plan."""
    seconds = found["seconds"]

    def floor(way: str) -> float:
        exchange = ", bfloat16" if way.endswith("bfloat16") else ""
        return max(seconds["computing alone"], seconds[f"sending alone{exchange}"])

    together = [way for way in seconds if " alone" not in way]
    return {
        "times_floor": {way: seconds[way] / floor(way) for way in together},
        "times_at_best": {way: seconds[way] / best for way, best in found["at_best"].items()},
        "measured_over_planned": {way: seconds[way] / planned for way, planned in found["planned"].items()},
    }


@pytest.mark.parametrize(("count", "rate", "images"), SETTINGS)
def test_exchange(tmp_path: Path, count: int, rate: str, images: int) -> None:
    if reason := why_not():
        pytest.skip(reason)
    with Hosts(tmp_path / "hosts", count) as hosts:
        addresses = {hosts.space(number): f"10.99.0.{number + 1}/24" for number in range(count)}
        with slow_links(DELAY_SECONDS, addresses):
            ranks = []
            for number, space in enumerate(addresses):
                throttle(hosts, number, rate)
                program = [sys.executable, "-m", "tests.benchmarks.exchange_rank", "10.99.0.1", number, count, images]
                command = ["ip", "netns", "exec", space, *map(str, program)]
                environment = {**os.environ, "GLOO_SOCKET_IFNAME": "eth1", "DS_ACCELERATOR": "cpu"}
                ranks.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
            printed = [rank.communicate()[0] for rank in ranks]
    assert not any(rank.returncode for rank in ranks)
    found = json.loads(printed[0].splitlines()[-1])
    forms = {form: {**of_form, **ratios(of_form)} for form, of_form in found.pop("forms").items()}
    name = f"exchange_{count}_hosts_{rate}_{images}_images"
    write(name, {"rate": rate, "images": images, "delay_seconds": DELAY_SECONDS, **found, **forms})
