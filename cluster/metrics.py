"""The metrics that a process exports to Prometheus: a table for each kind of run.

To add one: a row here, a `set`, `add` or `observe` of `cluster.telemetry.Telemetry` where it is computed, and a panel
in `cluster/monitoring/panels.py`. Dashboards, alerts and documents use only names of these tables.
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
CAUSES = ("start", "restart", "lost_work", "save_stall", "evaluation", "data_wait", "straggler")

_UNITS = ("seconds", "bytes")
_NOT_BASE_UNITS = ("ms", "milliseconds", "microseconds", "minutes", "hours", "kb", "mb", "gb", "mib", "gib", "percent")


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    Args:
        name: the exposed name without `PREFIX`. It ends with the unit; counters, and only they, end with ``_total``.
        kind: a "gauge" is set, a "counter" added to, a "histogram" observed; a "computed" gauge is read at the scrape.
        help: one sentence that says what is measured.
        unit: a base unit, "seconds" or "bytes", or "" for a plain number.
        label, values: the label that splits the metric, and all of its values; empty if it has none.
        buckets: upper bounds of a histogram, in its unit.

    Raises:
        ValueError: if a row contradicts itself or Prometheus' naming conventions.
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
    Metric("ranks", "gauge", "Number of ranks of the run."),
    Metric("step", "gauge", "Optimizer steps done since the run began, resumes included."),
    Metric("planned_steps", "gauge", "Optimizer steps of the whole run, by its recipe."),
    Metric("position_samples", "gauge", "Position in the training order: samples of all steps, resumes included."),
    Metric("epoch", "gauge", "Passes over the data since the run began, with the fraction of the current one."),
    Metric("loss", "gauge", "Mean loss of the latest global batch."),
    Metric(
        "loss_over_chance_ratio",
        "gauge",
        "Latest loss over that of guessing, which is ln C for a softmax over C classes.",
    ),
    Metric("target_cosine", "gauge", "Mean cosine between embedding and target class, latest global batch."),
    Metric(
        "target_angle_radians",
        "gauge",
        "Percentiles of the angle between embedding and target class, latest global batch.",
        label="percentile",
        values=PERCENTILES,
    ),
    Metric("margin_lambda", "gauge", "Annealing weight lambda of A-Softmax; small means the full margin."),
    Metric("margin_angle_beyond_pi_ratio", "gauge", "Share of samples whose angle with margin is beyond pi."),
    Metric("gradient_norm", "gauge", "Norm of the backbone's gradient, averaged over ranks, before weight decay."),
    Metric(
        "gradient_clip_ratio", "gauge", "What clipping multiplied the latest gradient by; 1: it was within the norm."
    ),
    Metric("embedding_norm", "gauge", "Mean norm of the embeddings of the latest global batch."),
    Metric("learning_rate", "gauge", "Learning rate of the latest step."),
    Metric("samples_total", "counter", "Samples that this process has trained on."),
    Metric("step_seconds", "histogram", "Wall time of a whole step.", "seconds", buckets=_STEP_BUCKETS),
    Metric("step_part_seconds_total", "counter", "Wall time by part of the step.", "seconds", "part", PARTS),
    Metric("skipped_steps_total", "counter", "Steps that changed no parameter, by reason.", "", "reason", REASONS),
    Metric(
        "communication_bytes_total",
        "counter",
        "Bytes that this rank sends, computed from tensor shapes for ring collectives.",
        "bytes",
        "part",
        ("head", "backbone"),
    ),
    Metric("decode_failures_total", "counter", "Undecodable samples, which are left out of their batch."),
    Metric("prefetched_batches", "gauge", "Decoded batches ready for the next steps; 0: the step waits for data."),
    Metric("checkpoint_interval_steps", "gauge", "Steps from one checkpoint to the next."),
    Metric("checkpoint_timestamp_seconds", "computed", "Time of the last complete checkpoint; 0: none yet.", "seconds"),
    Metric("checkpoint_age_seconds", "computed", "Time since the last checkpoint, or since the start.", "seconds"),
    Metric("checkpoint_bytes", "gauge", "Size of the last checkpoint, the files of all ranks.", "bytes"),
    Metric("checkpoint_save_seconds", "histogram", "Time to save.", "seconds", buckets=_SAVE_BUCKETS),
    Metric("checkpoint_stall_seconds_total", "counter", "Time that training was paused for saves.", "seconds"),
    Metric("checkpoint_failures_total", "counter", "Failed saves; earlier checkpoints are kept."),
    Metric("own_work_seconds", "gauge", "Own work of a step, without waiting for others: mean of 8 s.", "seconds"),
    Metric("goodput_ratio", "gauge", "Share of the wall time since the run began that went into steps that count."),
    Metric(
        "lost_seconds_total",
        "counter",
        "Wall time that went into no step that counts, by cause; from the end of the start before.",
        "seconds",
        "cause",
        CAUSES,
    ),
    Metric("restarts_total", "counter", "Restarts of the run before this process."),
    Metric("resident_memory_bytes", "computed", "Resident memory of this process.", "bytes"),
    Metric("run_disk_free_bytes", "computed", "Free disk space at the run's folder, as this host sees it.", "bytes"),
    Metric("head_planned_bytes", "gauge", "Planned memory of the head on the fullest rank, all of it.", "bytes"),
    Metric("head_held_bytes", "gauge", "Memory of this rank's rows, their gradient and optimizer state.", "bytes"),
    Metric("gpu_utilisation_ratio", "computed", "Share of time that the GPU is busy; NaN if NVML cannot be read."),
    Metric("mfu_ratio", "gauge", "Model FLOPs of the latest step over what the GPU could do meanwhile at its peak."),
    Metric("head_floor_ratio", "gauge", "Least time of the head's work on this GPU over the time it took."),
    Metric(
        "gpu_part_bytes",
        "gauge",
        "GPU memory at its fullest so far, by part; working: activations, gradients and blocks.",
        "bytes",
        "part",
        ("head", "backbone", "working", "unused"),
    ),
    Metric("gpu_allocated_bytes", "computed", "GPU memory in tensors now; 0 without a GPU.", "bytes"),
    Metric("gpu_peak_allocated_bytes", "computed", "Largest GPU memory in tensors so far; 0 without a GPU.", "bytes"),
)

SHARDING_METRICS = (
    Metric("samples_to_shard", "gauge", "Samples to process in all; Parquet is processed twice."),
    Metric("sharded_samples_total", "counter", "Samples processed: in finished tars, already there, or set aside."),
    Metric("sharded_bytes_total", "counter", "Bytes of finished tars.", "bytes"),
    Metric("set_aside_samples_total", "counter", "Samples that could not be used; rejected.tsv will list them."),
    Metric("elapsed_seconds", "computed", "Time since this process started.", "seconds"),
)


def evaluation_metrics(sets: Sequence[str]) -> tuple[Metric, ...]:
    """Rows beside a run's `METRICS` for the evaluation sets that its recipe names; none without sets."""
    if not sets:
        return ()
    latest = "Verification accuracy at the latest evaluation, by set."
    best = "Best verification accuracy of this run so far, by set."
    return (
        Metric("evaluation_accuracy_ratio", "gauge", latest, label="set", values=tuple(sets)),
        Metric("evaluation_best_accuracy_ratio", "gauge", best, label="set", values=tuple(sets)),
        Metric("evaluation_seconds_total", "counter", "Time that training was paused to evaluate.", "seconds"),
        Metric("evaluation_failures_total", "counter", "Sets that were not judged, and results that were not written."),
    )
