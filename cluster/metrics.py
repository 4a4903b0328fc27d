"""What a process can tell Prometheus: a table of metrics for each kind of run.

A table is data: a dashboard, an alert or a document names what stands here and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

PREFIX = "spherescale_"
PERCENTILES = ("p05", "p25", "p50", "p75", "p95")
PARTS = ("data_wait", "forward", "backward", "head", "communication", "update")
REASONS = ("not_finite", "spike", "left_out")

_UNITS = ("seconds", "bytes")
_NOT_BASE_UNITS = ("ms", "milliseconds", "microseconds", "minutes", "hours", "kb", "mb", "gb", "mib", "gib", "percent")


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    Args:
        name: as exposed, without `PREFIX`; ends with its unit, and with ``_total`` if and only if a counter.
        kind: "gauge" is set, "counter" added to, "histogram" observed; "computed" is a gauge read at the scrape.
        help: what it is, for a person.
        unit: a base unit, "seconds" or "bytes", or "" for a plain number.
        label, values: one label and all of its values, where a metric is split.
        buckets: upper bounds of a histogram, in its unit.

    Raises:
        ValueError: when a row contradicts itself or Prometheus' naming conventions.
    """

    name: str
    kind: Literal["gauge", "counter", "histogram", "computed"]
    help: str
    unit: str = ""
    label: str = ""
    values: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        stem = self.name.removesuffix("_total")
        suffix = stem.rsplit("_", 1)[-1]
        for wrong, wanted in (
            (not re.fullmatch(r"[a-z][a-z0-9_]*", self.name), "lower case letters, digits and underscores"),
            ((self.kind == "counter") != self.name.endswith("_total"), "_total on counters, and only there"),
            (suffix in _NOT_BASE_UNITS, f"a base unit ({', '.join(_UNITS)})"),
            ((suffix if suffix in _UNITS else "") != self.unit, f"a name that ends with its unit {self.unit!r}"),
            (bool(self.label) != bool(self.values), "a label together with all of its values"),
            ((self.kind == "histogram") != bool(self.buckets), "buckets on histograms, and only there"),
        ):
            if wrong:
                raise ValueError(f"metric: got {self.name!r} ({self.kind}), wanted {wanted}")


_STEP_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_SAVE_BUCKETS = (0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0)

METRICS = (
    Metric("ranks", "gauge", "Ranks that the run was started with."),
    Metric("step", "gauge", "Optimizer steps since the run began, resumes included."),
    Metric("position_samples", "gauge", "Place in the order of training: samples of all steps, resumes included."),
    Metric("epoch", "gauge", "Passes over the data since the run began, with the fraction of the current one."),
    Metric("loss", "gauge", "Mean loss of the latest global batch."),
    Metric("target_cosine", "gauge", "Mean cosine of a sample to its own class in the latest global batch."),
    Metric("target_angle_radians", "gauge", "Angle to the own class.", label="percentile", values=PERCENTILES),
    Metric("target_beyond_pi_ratio", "gauge", "Share of samples whose angle times m is more than pi."),
    Metric("loss_over_chance_ratio", "gauge", "Latest loss over ln C, what guessing among C classes costs."),
    Metric("gradient_norm", "gauge", "Length of the backbone's gradient, averaged over ranks, before weight decay."),
    Metric("embedding_norm", "gauge", "Mean length of an embedding in the latest global batch."),
    Metric("margin_lambda", "gauge", "Annealing weight of the margin at the latest step; small means full margin."),
    Metric("learning_rate", "gauge", "Learning rate of the latest step."),
    Metric("global_samples_per_second", "gauge", "Samples a second over all ranks, smoothed by the loop."),
    Metric("rank_samples_per_second", "gauge", "Samples a second of this rank, smoothed by the loop."),
    Metric("samples_total", "counter", "Samples that this process has trained on."),
    Metric("step_seconds", "histogram", "Wall time of a whole step.", "seconds", buckets=_STEP_BUCKETS),
    Metric("step_part_seconds_total", "counter", "Wall time by part of the step.", "seconds", "part", PARTS),
    Metric("skipped_steps_total", "counter", "Steps of which nothing was applied.", label="reason", values=REASONS),
    Metric(
        "communication_bytes_total",
        "counter",
        "Bytes that this rank sent, by shapes, were all collectives rings.",
        "bytes",
        "part",
        ("head", "backbone"),
    ),
    Metric("estimated_end_timestamp_seconds", "gauge", "When the last step will be done, at this pace.", "seconds"),
    Metric("decode_failures_total", "counter", "Samples that could not be decoded and were left out."),
    Metric("prefetch_batches", "gauge", "Decoded batches that wait for the loop; 0 means the loop waits."),
    Metric("checkpoint_interval_steps", "gauge", "Steps from one checkpoint to the next."),
    Metric("checkpoint_timestamp_seconds", "computed", "When the last one was complete; 0: none yet.", "seconds"),
    Metric("checkpoint_age_seconds", "computed", "Since the last checkpoint or, before it, the start.", "seconds"),
    Metric("checkpoint_bytes", "gauge", "Size of the last checkpoint, all ranks' files; 0: none yet.", "bytes"),
    Metric("checkpoint_save_seconds", "histogram", "Time to save.", "seconds", buckets=_SAVE_BUCKETS),
    Metric("checkpoint_stall_seconds_total", "counter", "Time that training stood still for saves.", "seconds"),
    Metric("checkpoint_failures_total", "counter", "Saves that failed; the checkpoints before them stay."),
    Metric("restarts_total", "counter", "Times that the run was started again before this process."),
    Metric("resident_memory_bytes", "computed", "Resident memory of this process.", "bytes"),
    Metric("run_free_bytes", "computed", "Free room where the run's folder lies, as this host sees it.", "bytes"),
    Metric("head_planned_bytes", "gauge", "The planner's word on the head: all it takes on the fullest rank.", "bytes"),
    Metric("head_held_bytes", "gauge", "What this rank's rows, their momentum and gradient take.", "bytes"),
    Metric("gpu_utilisation_ratio", "computed", "Share of time that the GPU was busy; NaN where NVML does not tell."),
    Metric("gpu_allocated_bytes", "computed", "GPU memory in tensors now; 0 without a GPU.", "bytes"),
    Metric("gpu_peak_allocated_bytes", "computed", "Most GPU memory ever in tensors; 0 without a GPU.", "bytes"),
)

SHARDING_METRICS = (
    Metric("sharding_samples", "gauge", "Samples of the source, so many as there are to do; twice for Parquet."),
    Metric("sharded_samples_total", "counter", "Samples done: in finished tars, found finished, or set aside."),
    Metric("sharded_bytes_total", "counter", "Bytes of finished tars.", "bytes"),
    Metric("set_aside_samples_total", "counter", "Samples that could not be used; rejected.tsv will name them."),
    Metric("elapsed_seconds", "computed", "Since the start of this run.", "seconds"),
)


def evaluation_metrics(sets: Sequence[str]) -> tuple[Metric, ...]:
    """Rows beside a run's `METRICS`: what it reaches on the sets that its recipe names; none without sets.

    All are 0 until the first evaluation.
    """
    if not sets:
        return ()
    rows = (
        ("evaluation_accuracy_ratio", "Share of pairs told right at the latest evaluation, by set."),
        ("evaluation_best_accuracy_ratio", "The most that any evaluation of this run reached, by set."),
    )
    seconds = Metric("evaluation_seconds_total", "counter", "Time that training stood still for it.", "seconds")
    return *(Metric(name, "gauge", about, label="set", values=tuple(sets)) for name, about in rows), seconds
