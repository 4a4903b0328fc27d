"""A step of the backbone on two and three hosts over throttled links: exchanged under the backward pass, and planned.

Its floor is the larger of computing and sending, each measured alone in the same run. The hosts are network namespaces
whose links the kernel throttles (token buckets; delay, which needs netem, is what the machine has).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.results import write
from tests.end_to_end.hosts import Hosts, run, why_not


def throttle(hosts: Hosts, number: int, rate: str) -> None:
    """Let a host send no faster than that."""
    bucket = ["root", "tbf", "rate", rate, "burst", "256kb", "latency", "50ms"]
    run("ip", "netns", "exec", hosts.space(number), "tc", "qdisc", "replace", "dev", "eth0", *bucket)


@pytest.mark.parametrize(("count", "rate"), [(2, "1gbit"), (2, "400mbit"), (3, "1gbit")])
def test_exchange(tmp_path: Path, count: int, rate: str) -> None:
    if reason := why_not():
        pytest.skip(reason)
    with Hosts(tmp_path / "hosts", count) as hosts:
        ranks = []
        for number in range(count):
            throttle(hosts, number, rate)
            program = [sys.executable, "-m", "tests.benchmarks.exchange_rank", hosts.addresses[0], number, count]
            command = ["ip", "netns", "exec", hosts.space(number), *map(str, program)]
            environment = {**os.environ, "GLOO_SOCKET_IFNAME": "eth0", "DS_ACCELERATOR": "cpu"}
            ranks.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
        printed = [rank.communicate()[0] for rank in ranks]
    assert not any(rank.returncode for rank in ranks)
    found = json.loads(printed[0].splitlines()[-1])
    seconds = found["seconds"]
    computing, sending = seconds["computing alone"], seconds["sending alone"]
    floor = {"": max(computing, sending), ", bfloat16": max(computing, seconds["sending alone, bfloat16"])}
    times_floor = {
        way: time / floor[", bfloat16" if way.endswith("bfloat16") else ""]
        for way, time in seconds.items()
        if not way.endswith("alone") and "sending" not in way
    }
    measured_over_planned = {way: seconds[way] / planned for way, planned in found["planned"].items()}
    facts = {"rate": rate, **found, "times_floor": times_floor, "measured_over_planned": measured_over_planned}
    write(f"exchange_{count}_hosts_{rate}", facts)
