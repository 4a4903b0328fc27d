"""What the hosts told, judged: each fault is named with its host, what was got and what was wanted."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.hosts import read_hostfile
from cluster.preflight import checks
from cluster.preflight.__main__ import read_plan
from cluster.preflight.checks import Measured
from cluster.preflight.facts import Facts, describe_shards
from cluster.versions import ROOMS, code_digest

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


def test_sets_are_told_apart_by_manifest_and_by_tars(tmp_path: Path) -> None:
    assert describe_shards(tmp_path) == "no manifest (No such file or directory)"
    (tmp_path / "manifest.json").write_text("{}")
    empty = describe_shards(tmp_path)
    (tmp_path / "0.tar").write_bytes(b"1234")
    full = describe_shards(tmp_path)
    (tmp_path / "manifest.json").write_text("{ }")
    assert len({empty, full, describe_shards(tmp_path)}) == 3
    assert full.endswith("1 tars of 4 bytes")


def test_any_change_of_code_changes_its_digest(tmp_path: Path) -> None:
    for room in ROOMS:
        (tmp_path / room).mkdir()
    file = tmp_path / "stages" / "train.py"
    file.write_text("a = 1\n")
    before = code_digest(tmp_path)
    assert code_digest(tmp_path) == before
    file.write_text("a = 2\n")
    assert code_digest(tmp_path) != before


def test_the_examples_are_what_deepspeed_reads() -> None:
    """Its environment file knows no comment and no empty line; its hostfile is ours."""
    launch = Path(__file__).parents[4] / "cluster" / "launch"
    assert read_hostfile(launch / "hostfile.example") == {"node1": 8, "node2": 8}
    lines = (launch / "deepspeed_env.example").read_text().splitlines()
    assert lines and all(re.fullmatch(r"[A-Z_]+=\S+", line) for line in lines)


def test_a_plan_as_the_planner_prints_it_is_read(tmp_path: Path) -> None:
    root, file = Path(__file__).parents[4], tmp_path / "plan.json"
    command = [sys.executable, root / "stages" / "plan.py", "--identities", "5000", "--ranks", "4", "--json"]
    file.write_text(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    plan = read_plan(file, ranks=4)
    assert plan.ranks == 4 and plan.gradient_bytes > 4 * 10**6
    assert plan.checkpoint_bytes == 2 * 4 * 5000 * 512 + 2 * plan.gradient_bytes
    with pytest.raises(ValueError, match="got a plan for 4 ranks, wanted the 8 slots of the hostfile"):
        read_plan(file, ranks=8)
    file.write_text("{}")
    with pytest.raises(ValueError, match="wanted what stages/plan"):
        read_plan(file, ranks=4)
