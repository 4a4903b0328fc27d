"""What is worth looking at in a run, as data: tiles, and panels in five groups, each with its queries.

Whatever shows a run reads this table. In a query ``$job`` stands for the run's name and ``$window`` for the time to
take rates over, a few scrapes long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Panel:
    """One chart.

    Args:
        title: what it shows.
        about: how to read it, for a person.
        queries: PromQL and the legend of its series, ``{{label}}`` filled in from the series.
        unit: of the values: "seconds", "bytes", "share" (of 1) or "" for plain numbers.
        kind: "lines", "stack" where the series add up, or "heatmap" with a row a series.
        logarithmic: for what spans decades.
        lowest_first: where the least of many series is the one to look at, not the most.
        sometimes: when there is nothing to show, for a panel that not every run fills.
    """

    title: str
    about: str
    queries: tuple[tuple[str, str], ...]
    unit: Literal["seconds", "bytes", "share", ""] = ""
    kind: Literal["lines", "stack", "heatmap"] = "lines"
    logarithmic: bool = False
    lowest_first: bool = False
    sometimes: str = ""


@dataclass(frozen=True)
class Tile:
    """One number about the run as it is now: its title, its query, and its unit as in `Panel`."""

    title: str
    query: str
    unit: Literal["seconds", "bytes", "share", ""] = ""


_JOB = '{job="$job"}'
_PARTS = f"spherescale_step_part_seconds_total{_JOB}"
_OWN = 'spherescale_step_part_seconds_total{job="$job", part!="communication"}'
_WORK = f"sum by (rank, host) (rate({_OWN}[$window]))"
_BY_PART = f"sum by (rank, host, part) (rate({_OWN}[$window]))"
_STEPS = f"rate(spherescale_step_seconds_count{_JOB}[$window])"


def _gauge(name: str, legend: str, across: str = "max") -> tuple[tuple[str, str], ...]:
    """A value that every rank reports alike."""
    return ((f"{across}(spherescale_{name}{_JOB})", legend),)


def _share_of(part: str) -> str:
    series = f'spherescale_step_part_seconds_total{{job="$job", part="{part}"}}'
    return f"sum by (rank, host) (rate({series}[$window]))"


def _by_rank(expression: str) -> tuple[tuple[str, str], ...]:
    return ((expression, "rank {{rank}} on {{host}}"),)


TILES = (
    Tile("Step", f"max(spherescale_step{_JOB})"),
    Tile("Samples trained on", f"max(spherescale_position_samples{_JOB})"),
    Tile("Loss", f"max(spherescale_loss{_JOB})"),
    Tile("Samples a second", f"max(spherescale_global_samples_per_second{_JOB})"),
    Tile("Time left", f"max(spherescale_estimated_end_timestamp_seconds{_JOB} > 0) - time()", "seconds"),
    Tile("Ranks that answer", f"sum(up{_JOB})"),
    Tile("Straggler index", f"max(job:spherescale_straggler:ratio{_JOB})"),
    Tile("Last checkpoint", f"min(spherescale_checkpoint_age_seconds{_JOB})", "seconds"),
)

TITLES = {"run": "Run", "ranks": "Ranks", "data": "Data", "head": "Head and loss", "checkpoints": "Checkpoints"}

PANELS: dict[str, tuple[Panel, ...]] = {
    "run": (
        Panel("Loss", "Mean over the global batch.", _gauge("loss", "loss")),
        Panel("Samples a second", "All ranks together.", _gauge("global_samples_per_second", "samples/s")),
        Panel(
            "Step time",
            "A tail far above the median is a stall: a checkpoint, a slow read, a slow rank.",
            tuple(
                (
                    f"histogram_quantile({q}, sum by (le) (rate(spherescale_step_seconds_bucket{_JOB}[$window])))",
                    legend,
                )
                for q, legend in ((0.5, "median"), (0.99, "99%"))
            ),
            "seconds",
        ),
        Panel(
            "Where a step's time goes",
            "Mean over ranks. Communication holds the waiting for slower ranks.",
            ((f"sum by (part) (rate({_PARTS}[$window])) / scalar(sum({_STEPS}))", "{{part}}"),),
            "seconds",
            "stack",
        ),
        Panel("Epoch", "Passes over the data.", _gauge("epoch", "epoch")),
        Panel(
            "Accuracy on held-out people",
            "At each evaluation, by set, and the best so far. A fall of two points: see the alert EvaluationDropped.",
            (
                (f"max by (set) (spherescale_evaluation_accuracy_ratio{_JOB} > 0)", "{{set}}"),
                (f"max by (set) (spherescale_evaluation_best_accuracy_ratio{_JOB} > 0)", "{{set}}, best"),
            ),
            "share",
            sometimes="the recipe names no evaluation set",
        ),
        Panel(
            "Training held up by evaluations",
            "Share of the time in which the loop stood still to evaluate.",
            ((f"avg(rate(spherescale_evaluation_seconds_total{_JOB}[10m]))", "share"),),
            "share",
            sometimes="the recipe names no evaluation set",
        ),
        Panel(
            "Ranks that answer",
            "Below the line: see the alert RankGone.",
            ((f"sum(up{_JOB})", "up"), *_gauge("ranks", "started with")),
        ),
    ),
    "ranks": (
        Panel(
            "Own work by rank, over the median",
            "Without the waiting for others. 1 is even; one row that stands out is the straggler.",
            _by_rank(f"{_WORK} / on () group_left () quantile(0.5, {_WORK})"),
            kind="heatmap",
        ),
        Panel(
            "What the slowest do longer",
            "Share of the time, by part, beyond the median rank. data_wait is a disk, the rest a processor.",
            (
                (
                    f"topk(5, {_BY_PART} - on (part) group_left () quantile by (part) (0.5, {_BY_PART}) > 0.02)",
                    "rank {{rank}} on {{host}}: {{part}}",
                ),
            ),
            "share",
            sometimes="no rank spends 2 % more of its time than the median",
        ),
        Panel(
            "Slowest over median rank",
            "1 is even; the alert Straggler begins at 1.2.",
            ((f"max(job:spherescale_straggler:ratio{_JOB})", "slowest / median"),),
        ),
        Panel(
            "Communication by rank",
            "The rank with the least is the one that the others wait for.",
            _by_rank(_share_of("communication")),
            "share",
            lowest_first=True,
        ),
        Panel(
            "Bytes sent a second",
            "By a rank, mean over ranks; by shapes, were all collectives rings.",
            ((f"avg by (part) (rate(spherescale_communication_bytes_total{_JOB}[$window]))", "{{part}}"),),
            "bytes",
            "stack",
        ),
        Panel(
            "GPU busy",
            "Share of the time, by NVML.",
            _by_rank(f"spherescale_gpu_utilisation_ratio{_JOB} >= 0"),
            "share",
            "heatmap",
            sometimes="no rank has a GPU that NVML tells of (nvidia-ml-py)",
        ),
        Panel(
            "Resident memory", "Of each rank's process.", _by_rank(f"spherescale_resident_memory_bytes{_JOB}"), "bytes"
        ),
        Panel(
            "Peak GPU memory",
            "Most bytes in tensors so far.",
            _by_rank(f"spherescale_gpu_peak_allocated_bytes{_JOB}"),
            "bytes",
        ),
    ),
    "data": (
        Panel(
            "Waiting for data",
            "Share of a rank's time. Above a tenth: see the alert DataStarvation.",
            _by_rank(_share_of("data_wait")),
            "share",
        ),
        Panel(
            "Batches ready",
            "0 means that the loop waits.",
            _by_rank(f"spherescale_prefetch_batches{_JOB}"),
            lowest_first=True,
        ),
        Panel("Samples a second by rank", "", _by_rank(f"rate(spherescale_samples_total{_JOB}[$window])")),
        Panel(
            "Undecodable samples",
            "Share of the samples read on a host.",
            (
                (
                    f"sum by (host) (rate(spherescale_decode_failures_total{_JOB}[$window]))"
                    f" / sum by (host) (rate(spherescale_samples_total{_JOB}[$window]))",
                    "{{host}}",
                ),
            ),
            "share",
        ),
    ),
    "head": (
        Panel("Loss", "Mean over the global batch.", _gauge("loss", "loss"), logarithmic=True),
        Panel(
            "Cosine to the own class",
            "Rises as training works. Flat near 0 while lambda has fallen: the margin came too early.",
            _gauge("target_cosine", "mean cosine"),
        ),
        Panel(
            "Angle to the own class",
            "By percentile, in radians. Falls from pi/2 as training works.",
            ((f"max by (percentile) (spherescale_target_angle_radians{_JOB})", "{{percentile}}"),),
        ),
        Panel(
            "Angles beyond pi / m",
            "Share of samples on a later branch of the margin: high and flat means that it came too early.",
            _gauge("target_beyond_pi_ratio", "share"),
            "share",
        ),
        Panel(
            "Loss over chance",
            "The loss over ln C: 1 is what guessing costs.",
            _gauge("loss_over_chance_ratio", "loss / ln C"),
        ),
        Panel(
            "Margin's lambda",
            "Large: plain softmax; at its floor: the full margin.",
            _gauge("margin_lambda", "lambda"),
            logarithmic=True,
        ),
        Panel("Embedding length", "Mean of the latest batch.", _gauge("embedding_norm", "mean length")),
        Panel(
            "Gradient length",
            "Of the backbone, before weight decay. A climb before the loss leaps is divergence.",
            _gauge("gradient_norm", "length"),
            logarithmic=True,
        ),
        Panel("Learning rate", "", _gauge("learning_rate", "learning rate"), logarithmic=True),
        Panel(
            "Steps dropped",
            "left_out: passed over after a roll-back.",
            ((f"max by (reason) (spherescale_skipped_steps_total{_JOB})", "{{reason}}"),),
        ),
        Panel(
            "Memory of the head",
            "On the fullest rank: what the planner said, and its rows with momentum and gradient as they are.",
            _gauge("head_planned_bytes", "planned, with working memory") + _gauge("head_held_bytes", "held"),
            "bytes",
        ),
    ),
    "checkpoints": (
        Panel(
            "Age of the last checkpoint",
            "What a crash now would lose.",
            _gauge("checkpoint_age_seconds", "age", "min"),
            "seconds",
        ),
        Panel(
            "Time to save",
            "Mean of the saves within the hour.",
            (
                (
                    f"sum(increase(spherescale_checkpoint_save_seconds_sum{_JOB}[1h]))"
                    f" / sum(increase(spherescale_checkpoint_save_seconds_count{_JOB}[1h]))",
                    "mean",
                ),
            ),
            "seconds",
        ),
        Panel(
            "Training held up by saves",
            "Share of the time in which the loop stood still to copy its state out.",
            ((f"avg(rate(spherescale_checkpoint_stall_seconds_total{_JOB}[10m]))", "share"),),
            "share",
        ),
        Panel(
            "Saves that failed",
            "The log of rank 0 says why; the checkpoints before them stay.",
            _gauge("checkpoint_failures_total", "failed"),
        ),
        Panel("Size", "Of the last checkpoint, all ranks' files.", _gauge("checkpoint_bytes", "last"), "bytes"),
        Panel(
            "Free room",
            "Where the run writes, as each host sees it. Less than three checkpoints: see the alert DiskNearlyFull.",
            ((f"min by (host) (spherescale_run_free_bytes{_JOB})", "{{host}}"),),
            "bytes",
            lowest_first=True,
        ),
        Panel("Step", "Falls back to the last checkpoint when the run is started again.", _gauge("step", "step")),
        Panel("Restarts", "", _gauge("restarts_total", "restarts")),
    ),
}
