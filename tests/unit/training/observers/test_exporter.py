"""Prometheus as a record leaves it, and a new number that costs a row of the table and nothing here."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.metrics import METRICS, Metric, evaluation_metrics
from cluster.ranks.topology import Topology
from cluster.telemetry import Telemetry
from pipeline.backbones.sphereface import SphereFaceBackbone
from pipeline.optim.sgd import SGD
from pipeline.planning import head_bytes
from pipeline.planning.of_recipe import job_of
from pipeline.recipe.schema import Checkpoint, Data, Log, Recipe
from pipeline.run.saver import Saved
from pipeline.training.observers.exporter import Exporter
from pipeline.training.observers.metrics_file import MetricsFile
from tests.records import evaluated, record, window_of

CLASSES = 1000
TOPOLOGY = Topology(1, 2, 1, 2)


def recipe(port: int | None = None) -> Recipe:
    return Recipe(
        data=Data(shards=Path("s"), global_batch=4),
        backbone=SphereFaceBackbone(name="sphereface4", embedding_dim=8),
        optimizer=SGD(steps=8, learning_rate=0.1),
        checkpoint=Checkpoint(every=5),
        log=Log(metrics_port=port),
    )


class Rank:
    """An exporter, and what its registry then says."""

    def __init__(self, folder: Path, extra: Sequence[Metric] = (), port: int | None = None) -> None:
        self.telemetry = Telemetry(rank=1, host="here", job="run", metrics=(*METRICS, *extra), folder=folder)
        self.exporter = Exporter(self.telemetry, recipe(port), folder, TOPOLOGY, CLASSES, restarts=3)

    def value(self, name: str, **label: str) -> float | None:
        return self.telemetry.registry.get_sample_value(f"spherescale_{name}", self.telemetry.labels | label)


@pytest.fixture
def rank(tmp_path: Path) -> Rank:
    return Rank(tmp_path)


def test_what_is_known_before_the_first_step(rank: Rank) -> None:
    assert rank.value("ranks") == 2
    assert rank.value("checkpoint_interval_steps") == 5
    assert rank.value("restarts_total") == 3
    assert rank.value("head_planned_bytes") == head_bytes(job_of(recipe(), CLASSES, 2, "cpu"))


def test_gauges_are_set_counters_added_to_and_histograms_observed(rank: Rank) -> None:
    parts = {"head": 0.04}
    for step in (1, 2):
        one = record(
            step, parts=parts, measured={"target_angle_radians": {"p50": 1.5 - step}, "decode_failures_total": 3}
        )
        rank.exporter.recorded(one, window_of(one))
    assert rank.value("step") == 2
    assert rank.value("position_samples") == 8
    assert rank.value("loss") == 0.5
    assert rank.value("margin_lambda") == 5
    assert rank.value("target_angle_radians", percentile="p50") == -0.5
    assert rank.value("decode_failures_total") == 6
    assert rank.value("step_part_seconds_total", part="head") == 0.08
    assert (rank.value("step_seconds_count"), rank.value("step_seconds_sum")) == (2, 0.2)


def test_a_skipped_step_leaves_the_loss_as_it_was(rank: Rank) -> None:
    for one in (record(1), record(2, loss=float("nan"), skipped="not_finite")):
        rank.exporter.recorded(one, window_of(one))
    assert (rank.value("loss"), rank.value("step")) == (1.0, 2)
    assert rank.value("skipped_steps_total", reason="not_finite") == 1


def test_a_save_that_failed_is_counted_and_one_that_did_not_is_timed(rank: Rank) -> None:
    rank.exporter.saved(Saved(5, 2.0, "rank 0: disk full"))
    assert rank.value("checkpoint_failures_total") == 1
    assert rank.value("checkpoint_timestamp_seconds") == 0
    rank.exporter.saved(Saved(6, 3.0, None, 100))
    assert rank.value("checkpoint_failures_total") == 1
    assert (rank.value("checkpoint_save_seconds_sum"), rank.value("checkpoint_bytes")) == (3, 100)
    assert (rank.value("checkpoint_timestamp_seconds") or 0) > 1e9


def test_what_an_evaluation_reached(tmp_path: Path) -> None:
    rank = Rank(tmp_path, evaluation_metrics(["lfw"]))
    for step, faults in ((2, []), (4, ["lfw: not written", "best.json: not written"])):
        rank.exporter.evaluated(replace(evaluated(step), faults=faults))
    assert rank.value("evaluation_failures_total") == 2
    assert rank.value("evaluation_accuracy_ratio", set="lfw") == 1
    assert rank.value("evaluation_best_accuracy_ratio", set="lfw") == 1
    assert rank.value("evaluation_seconds_total") == 3


def test_it_is_served_from_the_start_and_withdrawn_at_a_good_end(tmp_path: Path) -> None:
    rank = Rank(tmp_path, port=0)
    rank.exporter.started(0)
    (target,) = (tmp_path / "targets").iterdir()
    address = json.loads(target.read_text())[0]["targets"][0]
    text = urllib.request.urlopen(f"http://{address}/metrics", timeout=60).read().decode()
    assert "spherescale_restarts_total" in text
    rank.exporter.ended(finished=True)
    assert not target.exists()


def test_a_new_number_is_exported_and_logged_by_its_row_alone(tmp_path: Path) -> None:
    rank = Rank(tmp_path, [Metric("rows_touched_ratio", "gauge", "Share of rows with a gradient.")])
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.started(0)
    one = record(1, measured={"rows_touched_ratio": 0.75})
    for observer in (rank.exporter, metrics):
        observer.recorded(one, window_of(one))
    metrics.logged(one, window_of(one))
    assert rank.value("rows_touched_ratio") == 0.75
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["rows_touched_ratio"] == 0.75


def test_a_number_without_a_row_is_refused(rank: Rank) -> None:
    with pytest.raises(ValueError, match="metric: got 'nonsense', wanted one of "):
        rank.exporter.recorded(record(1, measured={"nonsense": 1.0}), window_of(record(1)))
