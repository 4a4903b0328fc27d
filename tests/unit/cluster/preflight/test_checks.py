"""The judgement of hosts' facts: each fault is named with its host, the value got and the value wanted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.preflight import checks
from cluster.preflight.checks import Measured
from cluster.preflight.facts import Facts

GPU = "NVIDIA H100 80GB HBM3, 550.54.15"
GOOD = Facts({"python": "3.11.2", "torch": "2.13.0", "code": "abc"}, [GPU, GPU], "manifest 1, 2 tars", 50 * 2**30, True)


def test_hosts_that_are_alike_have_no_faults() -> None:
    facts = {"a": GOOD, "b": GOOD}
    found = [
        checks.versions(facts),
        checks.gpus(facts, {"a": 2, "b": 1}),
        checks.shards(facts),
        checks.disk(facts, 50 * 2**30),
        checks.port(facts, 29500),
    ]
    assert [check.faults for check in found] == [()] * 5
    assert found[0].found == "python 3.11.2, torch 2.13.0, code abc"
    assert found[1].found == f"2 × {GPU} a host"


def test_another_version_is_named_with_its_host() -> None:
    other = replace(GOOD, versions=GOOD.versions | {"torch": "2.12.0"})
    assert checks.versions({"a": GOOD, "b": GOOD, "c": other}).faults == (
        "c: torch: got 2.12.0, wanted 2.13.0 as on a",
    )


@pytest.mark.parametrize(
    ("gpus", "fault"),
    [
        ([GPU], "b: got 1 GPUs, wanted 2 as the hostfile has slots"),
        ([GPU.replace("550", "535")] * 2, f"b: got {GPU.replace('550', '535')}, wanted {GPU} as on a"),
        ([], f"b: got no GPU, wanted {GPU} as on a"),
    ],
)
def test_fewer_or_other_gpus(gpus: list[str], fault: str) -> None:
    assert fault in checks.gpus({"a": GOOD, "b": replace(GOOD, gpus=gpus)}, {"a": 2, "b": 2}).faults


def test_hosts_without_any_gpu_train_on_cpus() -> None:
    bare = replace(GOOD, gpus=[])
    assert not checks.gpus({"a": bare, "b": bare}, {"a": 2, "b": 2}).faults


@pytest.mark.parametrize(("reading", "offset"), [(99.0, -1.0), (100.0, 0.0), (101.5, 0.0), (102.0, 0.0), (105.0, 3.0)])
def test_a_clock_is_off_by_what_the_question_cannot_explain(reading: float, offset: float) -> None:
    assert checks.clock_offset(reading, asked=100.0, answered=102.0) == offset


def test_a_clock_beyond_the_bound_is_named() -> None:
    faults = checks.clocks({"a": 101.0, "b": 107.0, "c": 90.0, "d": 99.5}, asked=100.0, answered=102.0, bound=1).faults
    assert faults == (
        "b: got a clock 5.0 s ahead, wanted 1 s at most",
        "c: got a clock 10.0 s behind, wanted 1 s at most",
    )


def test_the_disk_of_the_fullest_host_counts() -> None:
    check = checks.disk({"a": GOOD, "b": replace(GOOD, free_bytes=2**30)}, 2 * 2**30)
    assert check.faults == ("b: got 1.0 GiB free, wanted 2.0",)


def test_the_slowest_link_is_named_when_the_exchange_is_slow() -> None:
    measured = [Measured("all-reduce", 4 * 10**9, 2.0), Measured("all-gather", 10**6, 0.001)]
    links = {"a → b": 3e9, "b → a": 1e9}
    assert not checks.bandwidth(measured, links, 2e9).faults
    assert checks.bandwidth(measured, links, 2.1e9).faults == (
        "b → a: got 2 GB/s in the all-reduce, wanted 2.1; this link alone has 1",
    )
