"""A step's numbers by the names of their metrics, and the means over the last few steps."""

from __future__ import annotations

import math

import pytest
import torch

from cluster.metrics import METRICS
from pipeline.head.health import TargetAngles
from pipeline.planning.utilisation import Floors
from pipeline.training.record import measured, memory_by_part, series_of, shares_of
from pipeline.training.step import Outcome, Severity
from tests.records import record, window_of

ANGLES = TargetAngles((1.0, 1.1, 1.2, 1.3, 1.4), 0.25)


def outcome(severity: Severity) -> Outcome:
    """Of three samples, the last of which could not be decoded."""
    return Outcome(
        severity,
        False,
        3.0,
        torch.tensor([0.25, 0.75, 9.0]),
        torch.tensor([1.0, 2.0, 6.0]),
        torch.tensor([True, True, False]),
        7.0,
    )


def test_an_applied_step_has_every_number() -> None:
    values = measured(outcome(Severity.GOOD), ANGLES, chance=2.0)
    assert dict(values) == {
        "target_cosine": 0.5,
        "embedding_norm": 1.5,
        "gradient_norm": 7.0,
        "loss_over_chance_ratio": 1.5,
        "margin_angle_beyond_pi_ratio": 0.25,
        "target_angle_radians": {"p05": 1.0, "p25": 1.1, "p50": 1.2, "p75": 1.3, "p95": 1.4},
    }


def test_a_margin_without_an_angle_has_no_share_beyond_pi() -> None:
    without = TargetAngles(ANGLES.quantiles, None)
    assert set(measured(outcome(Severity.SPIKE), without, 2.0)) == {"target_angle_radians"}


def test_a_step_that_was_not_applied_has_only_its_angles() -> None:
    assert set(measured(outcome(Severity.SPIKE), ANGLES, 2.0)) == {
        "margin_angle_beyond_pi_ratio",
        "target_angle_radians",
    }
    assert measured(outcome(Severity.LEFT_OUT), None, 2.0) == {}


def test_a_record_has_its_facts_among_its_values() -> None:
    applied = record(3, parts={"head": 0.05}, measured={"head_held_bytes": 8.0}, stall_seconds=0.5).values
    assert dict(applied) == {
        "step": 3,
        "epoch": 0.375,
        "position_samples": 12,
        "margin_lambda": 5.0,
        "learning_rate": 0.1,
        "step_seconds": 0.1,
        "step_part_seconds_total": {"head": 0.05},
        "loss": 1 / 3,
        "checkpoint_stall_seconds_total": 0.5,
        "head_held_bytes": 8.0,
    }
    skipped = record(3, loss=math.nan, skipped="spike").values
    assert skipped["skipped_steps_total"] == {"spike": 1}
    assert "loss" not in skipped and "checkpoint_stall_seconds_total" not in skipped


def test_every_value_has_a_row_in_the_table_of_metrics() -> None:
    whole = record(1, stall_seconds=0.5, measured=measured(outcome(Severity.GOOD), ANGLES, 2.0), parts={"head": 0.1})
    rows = {(metric.name, label) for metric in METRICS for label in metric.values or ("",)}
    for values in (whole.values, record(1, skipped="spike").values):
        named = {(name, label) for name, label, _ in series_of(values)}
        assert named and named <= rows


def test_a_series_is_a_name_a_label_and_a_value() -> None:
    assert list(series_of({"a": 1.0, "b": {"x": 2.0, "y": 3.0}})) == [("a", "", 1.0), ("b", "x", 2.0), ("b", "y", 3.0)]


def test_a_window_has_the_means_of_the_last_records() -> None:
    window = window_of(
        record(1, seconds=0.1, parts={"head": 0.02}), record(2, seconds=0.3, parts={"head": 0.04, "data_wait": 0.1})
    )
    assert window.step_seconds == pytest.approx(0.2)
    assert window.samples_per_second == pytest.approx(4 / 0.2)
    assert window.parts == pytest.approx({"data_wait": 0.05, "head": 0.03})
    window.add(record(3, seconds=0.5))  # the first falls out
    assert window.step_seconds == pytest.approx(0.4)


def test_shares_of_the_possible_are_of_the_step_and_of_the_heads_part() -> None:
    floors = Floors(step=0.05, head=0.01)
    assert shares_of(floors, 0.2, {"head": 0.04, "forward": 0.1}) == {"mfu_ratio": 0.25, "head_floor_ratio": 0.25}
    assert shares_of(floors, 0.2, {}) == {"mfu_ratio": 0.25}


def test_the_parts_of_the_memory_add_up_to_what_is_reserved() -> None:
    (parts,) = memory_by_part(head=100, backbone=30, allocated=200, reserved=256).values()
    assert parts == {"head": 100, "backbone": 30, "working": 70, "unused": 56}
    rows = {metric.name: metric for metric in METRICS}
    assert isinstance(parts, dict)
    assert tuple(parts) == rows["gpu_part_bytes"].values
