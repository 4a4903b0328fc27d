"""The time of a step and the course of a run against sums written out by hand; rates that are none are refused."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipeline.planning import Job, Network, Rates, read_rates
from pipeline.planning.of_recipe import whole_job_of
from pipeline.planning.rates import Link
from pipeline.planning.report import timing, whole_run
from pipeline.planning.timing import (
    communication_seconds,
    course,
    exchange_seconds,
    scaling,
    step_parts,
    step_seconds,
)
from pipeline.recipe.file import load_recipe
from tests.faces import ROOT

NETWORK = Network(parameters=10**6, activation_bytes=0, macs=5 * 10**8)
JOB = Job(classes=1000, embedding_dim=64, global_batch=32, ranks=2, block=128)
RATES = Rates(
    ranks=2,
    network_flops_per_second=1e12,
    network_call_seconds=4e-3,
    head_flops_per_second=1e11,
    head_call_seconds=1e-3,
    update_bytes_per_second=1e9,
    decode_images_per_second=1e4,
    other_seconds=2e-3,
    collective_bytes_per_second=1e9,
    hop_seconds=1e-4,
    host_bytes_per_second=None,
    host_hop_seconds=None,
    exchange_bytes_per_work_second=None,
    copy_bytes_per_second=1e9,
    write_bytes_per_second=1e8,
    start_seconds=20,
)


def test_a_step_is_the_sum_of_its_parts() -> None:
    parts = step_parts(JOB, NETWORK, RATES)
    sent = 16 * 64 * 2 + 8 * 16 + 16 * 64 * 4 + 4 * 4 * 32
    assert parts == pytest.approx(
        {
            "network, forward and backward": 4e-3 + 6 * 5e8 * 16 / 1e12,
            "classifier": 1e-3 + 4 * 2 * 32 * 500 * 64 / 1e11,
            "update": 4 * (10**6 + 500 * 64) / 1e9,
            "communication": 11e-4 + sent / 1e9,  # the network's 4.2 ms are under its backward pass of 35
            "agreeing, bookkeeping": 2e-3,
            "waiting for images": 0,
        }
    )
    assert step_seconds(JOB, NETWORK, RATES) == pytest.approx(sum(parts.values()))


def test_the_networks_exchange_costs_what_its_last_backward_pass_does_not_hide() -> None:
    slow = replace(RATES, collective_bytes_per_second=1e7)
    of_network, backward = 2e-4 + 4 * 10**6 / 1e7, 2 / 3 * (4e-3 + 6 * 5e8 * 16 / 1e12)
    others = communication_seconds(JOB, NETWORK, slow) - of_network
    assert step_parts(JOB, NETWORK, slow)["communication"] == pytest.approx(others + of_network - backward)
    half = replace(JOB, exchange=2)
    assert step_parts(half, NETWORK, slow)["communication"] == pytest.approx(others + 2e-4 + 2 * 10**6 / 1e7 - backward)
    parted = replace(JOB, zero_stage=1)
    assert step_parts(parted, NETWORK, slow)["communication"] == pytest.approx(others + of_network), "nothing is hidden"


def test_what_the_exchange_takes_from_computing_is_not_hidden() -> None:
    worked = replace(RATES, exchange_bytes_per_work_second=1e8)  # 4 MB: 40 ms
    assert exchange_seconds(JOB, NETWORK, worked, 1.0) == pytest.approx(0.04)
    assert exchange_seconds(replace(JOB, exchange=2), NETWORK, worked, 1.0) == pytest.approx(0.02)
    slow = replace(worked, collective_bytes_per_second=1e7)  # 400 ms, of which 200 are under the backward pass
    assert exchange_seconds(JOB, NETWORK, slow, 0.3) == pytest.approx(0.2002)
    assert exchange_seconds(JOB, NETWORK, slow, 10.0) == pytest.approx(0.04)
    assert exchange_seconds(replace(JOB, ranks=1), NETWORK, slow, 10.0) == 0


def test_a_ring_through_several_hosts_is_as_fast_as_the_network_between_them() -> None:
    both = replace(RATES, host_bytes_per_second=1e8, host_hop_seconds=1e-3)
    assert (both.link(1), both.link(2)) == (Link(1e9, 1e-4), Link(1e8, 1e-3))
    assert RATES.link(2) == Link(1e9, 1e-4), "not measured: that within a host is taken"
    alone = replace(both, collective_bytes_per_second=None, hop_seconds=None)
    assert alone.link(1) == Link(1e8, 1e-3)
    assert replace(RATES, collective_bytes_per_second=None).link(1) is None
    for ranks_per_host, link in ((2, Link(1e9, 1e-4)), (1, Link(1e8, 1e-3))):
        job = replace(JOB, ranks_per_host=ranks_per_host)
        sent = 16 * 64 * 2 + 8 * 16 + 16 * 64 * 4 + 4 * 4 * 32 + 4 * 10**6
        wanted = 13 * link.hop_seconds + sent / link.bytes_per_second
        assert communication_seconds(job, NETWORK, both) == pytest.approx(wanted)
    lines = timing(replace(JOB, ranks_per_host=1), NETWORK, both, [2])
    assert lines[-1] == "a ring between hosts: 0.8 Gb/s a rank, 1 ms a step"
    assert (
        "a ring between hosts: 8 Gb/s a rank, 0.1 ms a step (not measured: "
        in timing(replace(JOB, ranks_per_host=1), NETWORK, RATES, [2])[-1]
    )


def test_the_goodput_of_64_hosts() -> None:
    job = replace(JOB, ranks=512, global_batch=2048, ranks_per_host=8)
    run = course(job, NETWORK, RATES, steps=100_000, save_every=1000, host_hours=5000, noticed_seconds=60)
    assert job.hosts == 64
    # one host of 64 lost each 78 h: what it costs, and the saves, over the time of the steps
    step = step_seconds(job, NETWORK, RATES)
    lost = (run.lost_work_seconds + run.restart_seconds) / (5000 * 3600 / 64)
    assert run.goodput == pytest.approx(1 - lost - run.stall_seconds / (1000 * step), abs=1e-4)
    said = whole_run(run, steps=100_000, save_every=1000, step_seconds=step, hosts=64, host_hours=5000)
    assert f"goodput {run.goodput:.1%}: the share of the time that goes into steps that count" in said
    assert "64 hosts, one lost each 78 h (assumed: 5,000 h for a host)" in said


def test_a_slow_disk_is_what_a_step_takes_in_the_end() -> None:
    slow = replace(RATES, decode_images_per_second=10.0)
    assert step_seconds(JOB, NETWORK, slow) == pytest.approx(16 / 10)
    assert step_parts(JOB, NETWORK, slow)["waiting for images"] > 1


def test_what_a_step_does_not_do_costs_nothing() -> None:
    fused, parted = replace(JOB, fused_update=True), replace(JOB, zero_stage=1)
    update = step_parts(JOB, NETWORK, RATES)["update"]
    assert step_parts(fused, NETWORK, RATES)["update"] == pytest.approx(update - 4 * 500 * 64 / 1e9)
    assert step_parts(parted, NETWORK, RATES)["update"] == pytest.approx(update - 4 * 5e5 / 1e9)
    one = replace(RATES, collective_bytes_per_second=None, hop_seconds=None)
    assert communication_seconds(replace(JOB, ranks=1), NETWORK, one) == 0


def test_micro_batches_call_and_exchange_again() -> None:
    many = replace(JOB, accumulation=4)
    parts, whole = step_parts(many, NETWORK, RATES), step_parts(JOB, NETWORK, RATES)
    assert parts["classifier"] - whole["classifier"] == pytest.approx(3e-3)
    network = "network, forward and backward"
    assert parts[network] - whole[network] == pytest.approx(12e-3)
    # of each micro-batch its own eleven hops; of the step the network's two. The bytes are the same.
    assert parts["communication"] - whole["communication"] == pytest.approx(33e-4)


def test_rates_of_one_rank_do_not_speak_for_several() -> None:
    one = replace(RATES, ranks=1, collective_bytes_per_second=None, hop_seconds=None)
    with pytest.raises(ValueError, match=r"rates of 1 rank: .* the plan is for 2; calibrate on several"):
        step_seconds(JOB, NETWORK, one)


def test_scaling_leaves_out_what_cannot_be_split_and_never_gains() -> None:
    found = scaling(JOB, NETWORK, RATES, [1, 2, 3, 4, 32, 64])
    assert [ranks for ranks, *_ in found] == [1, 2, 4, 32], "3 does not divide a batch of 32, which is less than 64"
    assert found[0][2] == 1
    assert [share for *_, share in found] == sorted((share for *_, share in found), reverse=True)
    for ranks, speed, share in found:
        alone = 32 / step_seconds(replace(JOB, ranks=1), NETWORK, RATES)
        assert speed == pytest.approx(32 / step_seconds(replace(JOB, ranks=ranks), NETWORK, RATES))
        assert share == pytest.approx(speed / ranks / alone)


def test_the_course_of_a_run() -> None:
    on_two = replace(JOB, ranks_per_host=1)
    run = course(on_two, NETWORK, RATES, steps=100_000, save_every=500, host_hours=10, noticed_seconds=30)
    step = step_seconds(JOB, NETWORK, RATES)
    assert run.training_seconds == pytest.approx(100_000 * step)
    assert run.stall_seconds == pytest.approx((8 * 500 * 64 + 8 * 10**6) / 1e9)
    assert run.write_seconds == pytest.approx((8 * 1000 * 64 + 8 * 10**6) / 1e8)
    assert run.restart_seconds == 50
    assert run.failures == pytest.approx(run.total_seconds / (5 * 3600))
    assert run.total_seconds > run.training_seconds + run.failures * (50 + 0.9 * run.lost_work_seconds)
    assert run.best_interval_steps * step == pytest.approx(math.sqrt(2 * run.stall_seconds * 5 * 3600), rel=0.05)
    adam = replace(JOB, slots=2, row_slots=1)
    more = course(adam, NETWORK, RATES, steps=9, save_every=3, host_hours=100, noticed_seconds=30)
    assert more.stall_seconds == pytest.approx((4 * 500 * (3 * 64 + 1) + 12 * 10**6) / 1e9)
    assert more.write_seconds == pytest.approx((4 * 1000 * (3 * 64 + 1) + 12 * 10**6) / 1e8)
    safe = course(JOB, NETWORK, RATES, steps=100_000, save_every=500, host_hours=1e9, noticed_seconds=30)
    assert safe.total_seconds == pytest.approx(run.training_seconds + 200 * run.stall_seconds, rel=1e-4)


@pytest.mark.parametrize(
    ("field", "value"),
    [("network_flops_per_second", 0), ("head_call_seconds", -1), ("start_seconds", math.nan), ("ranks", "two")],
)
def test_a_rate_that_is_none_is_refused_by_name(tmp_path: Path, field: str, value: object) -> None:
    file = tmp_path / "rates.json"
    file.write_text(json.dumps({"rates": asdict(RATES) | {field: value}}))
    with pytest.raises(ValueError, match=rf"rates.json: {field}: got {value}"):
        read_rates(file)


def test_files_that_hold_no_rates_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none: No such file or directory; wanted what stages/calibrate.py wrote"):
        read_rates(tmp_path / "none")
    file = tmp_path / "rates.json"
    for text in ("not JSON", "[]", "{}", '{"rates": 3}'):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"rates.json: "):
            read_rates(file)
    file.write_text(json.dumps({"rates": {**asdict(RATES), "luck": 1} | {}}))
    with pytest.raises(ValueError, match=r"unknown \['luck'\]; calibrate anew"):
        read_rates(file)
    file.write_text(json.dumps({"rates": asdict(RATES)}))
    assert read_rates(file) == RATES


def test_groups_that_share_classes_are_not_planned() -> None:
    recipe = load_recipe(ROOT / "stages/recipes/demo.yaml", ["head.ranks=2"])
    with pytest.raises(ValueError, match=r"head.ranks: got 2, wanted all 4, or null: groups are not planned"):
        whole_job_of(recipe, 30, 4)
    assert whole_job_of(recipe, 30, 2).ranks == 2
