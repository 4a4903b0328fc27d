"""The panels and tiles of a run, as data: five groups of panels, each panel with its queries.

The live page and the Grafana dashboards are made from this table; a panel added here appears in both. In a query
``$job`` stands for the run's name and ``$window`` for the time to take rates over, a few scrapes long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Panel:
    """One chart.

    Args:
        title: the quantity shown.
        about: how to read it, in a sentence or two.
        queries: PromQL and the legend of its series; ``{{label}}`` is replaced by the label's value.
        unit: of the values: "seconds", "bytes", "share" (of 1) or "" for plain numbers.
        kind: "lines"; "stack" if the series add up; "heatmap" for one row per series.
        logarithmic: for values that span decades.
        lowest_first: list the lowest series first, if low values are the ones to look at.
        if_empty: the text shown without series, for a panel that not every run fills.
        of_margin: about a quantity that only some margins have: the page leaves it out without series.
    """

    title: str
    about: str
    queries: tuple[tuple[str, str], ...]
    unit: Literal["seconds", "bytes", "share", ""] = ""
    kind: Literal["lines", "stack", "heatmap"] = "lines"
    logarithmic: bool = False
    lowest_first: bool = False
    if_empty: str = ""
    of_margin: bool = False


@dataclass(frozen=True)
class Tile:
    """One number about the run.

    Args:
        title, query, unit: as in `Panel`; the query has one result.
        present: only a run that answers has it. Others are shown with their age after the run is gone.
        total: what the value is a part of, as a query with one result: "86 of 400".
        ago: the value is the age of an event at the time of the query: "114 s ago", also after the run is gone.
    """

    title: str
    query: str
    unit: Literal["seconds", "bytes", "share", ""] = ""
    present: bool = False
    total: str = ""
    ago: bool = False


_JOB = '{job="$job"}'
_PARTS = f"spherescale_step_part_seconds_total{_JOB}"
_OWN = 'spherescale_step_part_seconds_total{job="$job", part!="communication"}'
_BY_PART = f"sum by (rank, host, part) (rate({_OWN}[$window]))"
_STEPS = f"rate(spherescale_step_seconds_count{_JOB}[$window])"
_NO_EVALUATION = "no evaluation in this time: none was due, or the recipe names no evaluation set"
_NO_CLIPPING = "no step in this time, or the recipe has no optimizer.clip_norm"
_NO_PEAK = "no GPU, or one whose peak is not in cluster/cards.py"


def _gauge(name: str, legend: str, across: str = "max") -> tuple[tuple[str, str], ...]:
    """One line of a value that is the same on every rank."""
    return ((f"{across}(spherescale_{name}{_JOB})", legend),)


def _share_of(part: str) -> str:
    series = f'spherescale_step_part_seconds_total{{job="$job", part="{part}"}}'
    return f"sum by (rank, host) (rate({series}[$window]))"


def _step_quantile(quantile: float) -> str:
    return f"histogram_quantile({quantile}, sum by (le) (rate(spherescale_step_seconds_bucket{_JOB}[$window])))"


def _by_rank(expression: str) -> tuple[tuple[str, str], ...]:
    return ((expression, "rank {{rank}} on {{host}}"),)


def _pace(series: str) -> str:
    """What a counter gains a second now. Nothing for ranks that are gone; 0 two minutes after a run has stopped."""
    return f"(rate({series}{_JOB}[2m]) and {series}{_JOB})"


TILES = (
    Tile("Step", f"max(spherescale_step{_JOB})", total=f"max(spherescale_planned_steps{_JOB})"),
    Tile("Samples trained on", f"max(spherescale_position_samples{_JOB})"),
    Tile("Loss", f"max(spherescale_loss{_JOB})"),
    Tile("Samples per second", f"sum({_pace('spherescale_samples_total')})", present=True),
    Tile(
        "Time left",
        f"(max(spherescale_planned_steps{_JOB}) - max(spherescale_step{_JOB}))"
        f" / (max({_pace('spherescale_step_seconds_count')}) > 0)",
        "seconds",
        present=True,
    ),
    Tile("Ranks that answer", f"sum(up{_JOB})", present=True),
    Tile("Slowest rank / others", f"max(job:spherescale_straggler:ratio{_JOB})", present=True),
    Tile("Goodput", f"avg(spherescale_goodput_ratio{_JOB})", "share"),
    Tile(
        "Last checkpoint",
        f"min(spherescale_checkpoint_age_seconds{_JOB}) and max(spherescale_checkpoint_timestamp_seconds{_JOB}) > 0",
        "seconds",
        ago=True,
    ),
)

TITLES = {"run": "Run", "ranks": "Ranks", "data": "Data", "head": "Head and loss", "checkpoints": "Checkpoints"}

PANELS: dict[str, tuple[Panel, ...]] = {
    "run": (
        Panel("Loss", "Mean over the global batch.", _gauge("loss", "loss")),
        Panel(
            "Samples per second",
            "All ranks together.",
            ((f"sum(rate(spherescale_samples_total{_JOB}[$window]))", "samples/s"),),
        ),
        Panel(
            "Step time",
            "A 99th percentile far above the median means stalls: a checkpoint, a slow read or a slow rank.",
            ((_step_quantile(0.5), "median"), (_step_quantile(0.99), "99th percentile")),
            "seconds",
        ),
        Panel(
            "Step time by part",
            "Mean over ranks. Communication includes waiting for slower ranks.",
            ((f"sum by (part) (rate({_PARTS}[$window])) / scalar(sum({_STEPS}))", "{{part}}"),),
            "seconds",
            "stack",
        ),
        Panel(
            "Goodput",
            "Share of the wall time since the run began, restarts included, that went into steps that count.",
            _gauge("goodput_ratio", "goodput", "avg"),
            "share",
        ),
        Panel(
            "Lost time by cause",
            "Share of the time, mean over ranks. lost_work: steps that are done again. Above a fifth: see GoodputLow.",
            ((f"avg by (cause) (rate(spherescale_lost_seconds_total{_JOB}[10m]))", "{{cause}}"),),
            "share",
            "stack",
        ),
        Panel(
            "Model FLOP utilisation",
            "The model's FLOPs over what the GPU could do at its peak. The slowest and the fastest rank.",
            _gauge("mfu_ratio", "lowest", "min") + _gauge("mfu_ratio", "highest"),
            "share",
            if_empty=_NO_PEAK,
        ),
        Panel("Epoch", "Passes over the data.", _gauge("epoch", "epoch")),
        Panel(
            "Verification accuracy",
            "At each evaluation, by set, and the best so far. If it falls by two points: see EvaluationDropped.",
            (
                (f"max by (set) (spherescale_evaluation_accuracy_ratio{_JOB})", "{{set}}"),
                (f"max by (set) (spherescale_evaluation_best_accuracy_ratio{_JOB})", "{{set}}, best"),
            ),
            "share",
            if_empty=_NO_EVALUATION,
        ),
        Panel(
            "Training paused for evaluations",
            "Share of the time.",
            ((f"avg(rate(spherescale_evaluation_seconds_total{_JOB}[10m]))", "share"),),
            "share",
            if_empty=_NO_EVALUATION,
        ),
        Panel(
            "Failed evaluations",
            "Sets that were not judged, and results that were not written. The log of rank 0 has the reason.",
            _gauge("evaluation_failures_total", "failed"),
            if_empty=_NO_EVALUATION,
        ),
        Panel(
            "Ranks that answer",
            "Fewer than the run has: see RankGone.",
            ((f"sum(up{_JOB})", "answer"), *_gauge("ranks", "ranks of the run")),
        ),
    ),
    "ranks": (
        Panel(
            "Own work by rank, over the others",
            "Without waiting. All rows near 1: even. A row that stands out is a straggler.",
            _by_rank(f"rank:spherescale_own_work:over_others{_JOB}"),
            kind="heatmap",
        ),
        Panel(
            "Own work by rank, over its best",
            "Over the best minute of the last hour. All rows above 1: everything slows down.",
            _by_rank(f"rank:spherescale_own_work:over_best{_JOB}"),
            kind="heatmap",
        ),
        Panel(
            "Extra time of the slowest ranks, by part",
            "Share of the time beyond the median rank. data_wait: disk or network. The rest: GPU or processor.",
            (
                (
                    f"topk(5, {_BY_PART} - on (part) group_left () quantile by (part) (0.5, {_BY_PART}) > 0.02)",
                    "rank {{rank}} on {{host}}: {{part}}",
                ),
            ),
            "share",
            if_empty="no rank spends 2 % more of its time on any part than the median rank",
        ),
        Panel(
            "Slowest rank over the others",
            "1: even. Above 1.1: see Straggler.",
            ((f"max(job:spherescale_straggler:ratio{_JOB})", "slowest / others"),),
        ),
        Panel(
            "Communication by rank",
            "Share of the time. The other ranks wait for the rank with the least.",
            _by_rank(_share_of("communication")),
            "share",
            lowest_first=True,
        ),
        Panel(
            "Bytes sent per second",
            "Mean over ranks, computed from tensor shapes for ring collectives.",
            ((f"avg by (part) (rate(spherescale_communication_bytes_total{_JOB}[$window]))", "{{part}}"),),
            "bytes",
            "stack",
        ),
        Panel(
            "GPU utilisation",
            "Share of the time that the GPU is busy, from NVML.",
            _by_rank(f"spherescale_gpu_utilisation_ratio{_JOB} >= 0"),
            "share",
            "heatmap",
            if_empty="no GPU, or NVML cannot be read (install nvidia-ml-py)",
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
        Panel(
            "GPU memory by part",
            "Of the fullest rank, each part. Working: activations, gradients, blocks. Unused: kept by torch.",
            ((f"max by (part) (spherescale_gpu_part_bytes{_JOB})", "{{part}}"),),
            "bytes",
            "stack",
            if_empty="no GPU",
        ),
    ),
    "data": (
        Panel(
            "Waiting for data",
            "Share of a rank's time. Above a tenth: see DataStarvation.",
            _by_rank(_share_of("data_wait")),
            "share",
        ),
        Panel(
            "Prefetched batches",
            "Decoded batches ready for the next steps. 0: the step waits for data.",
            _by_rank(f"spherescale_prefetched_batches{_JOB}"),
            lowest_first=True,
        ),
        Panel("Samples per second by rank", "", _by_rank(f"rate(spherescale_samples_total{_JOB}[$window])")),
        Panel(
            "Undecodable samples",
            "Share of the samples read on a host. Above one in a thousand: see DecodeFailures.",
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
        Panel("Loss, logarithmic", "Mean over the global batch.", _gauge("loss", "loss"), logarithmic=True),
        Panel(
            "Target cosine",
            "Mean cosine between embedding and target class. Rises as training works.",
            _gauge("target_cosine", "mean"),
        ),
        Panel(
            "Target angle",
            "Percentiles, in radians. Falls from pi/2 as training works.",
            ((f"max by (percentile) (spherescale_target_angle_radians{_JOB})", "{{percentile}}"),),
        ),
        Panel(
            "Margin angle beyond pi",
            "Share of samples whose angle with margin is beyond pi. High and flat: the margin came too early.",
            _gauge("margin_angle_beyond_pi_ratio", "share"),
            "share",
            of_margin=True,
        ),
        Panel(
            "Loss over chance",
            "The loss over that of guessing, ln C for a softmax. 1: no better than guessing.",
            _gauge("loss_over_chance_ratio", "loss / chance"),
        ),
        Panel(
            "Margin lambda",
            "Large: plain softmax. At its minimum: the full margin.",
            _gauge("margin_lambda", "lambda"),
            logarithmic=True,
            of_margin=True,
        ),
        Panel("Embedding norm", "Mean over the global batch.", _gauge("embedding_norm", "mean")),
        Panel(
            "Gradient norm",
            "Of the backbone, before weight decay. A climb before the loss rises is divergence.",
            _gauge("gradient_norm", "norm"),
            logarithmic=True,
        ),
        Panel(
            "Gradient clipping",
            "What the gradient is multiplied by. 1: within optimizer.clip_norm. Always small: a lower learning rate.",
            _gauge("gradient_clip_ratio", "factor"),
            if_empty=_NO_CLIPPING,
        ),
        Panel("Learning rate", "", _gauge("learning_rate", "learning rate"), logarithmic=True),
        Panel(
            "Skipped steps",
            "Steps that changed no parameter. left_out: the batch is skipped on purpose after a roll-back.",
            ((f"max by (reason) (spherescale_skipped_steps_total{_JOB})", "{{reason}}"),),
        ),
        Panel(
            "Head's share of its floor",
            "The least time that the head's work could take on this GPU, over the time it takes. 1: nothing to gain.",
            _gauge("head_floor_ratio", "share", "min"),
            "share",
            if_empty=_NO_PEAK,
        ),
        Panel(
            "Memory of the head",
            "On the fullest rank. Planned: with working memory. Held: rows, their gradient and optimizer state.",
            _gauge("head_planned_bytes", "planned") + _gauge("head_held_bytes", "held"),
            "bytes",
        ),
    ),
    "checkpoints": (
        Panel(
            "Age of the last checkpoint",
            "The training time that a crash now would lose.",
            _gauge("checkpoint_age_seconds", "age", "min"),
            "seconds",
        ),
        Panel(
            "Time to save",
            "Mean over the last hour.",
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
            "Training paused for saves",
            "Share of the time in which the loop waits for the state to be copied.",
            ((f"avg(rate(spherescale_checkpoint_stall_seconds_total{_JOB}[10m]))", "share"),),
            "share",
        ),
        Panel(
            "Failed saves",
            "The log of rank 0 has the reason. Earlier checkpoints are kept.",
            _gauge("checkpoint_failures_total", "failed"),
        ),
        Panel("Checkpoint size", "Files of all ranks, last checkpoint.", _gauge("checkpoint_bytes", "size"), "bytes"),
        Panel(
            "Free disk space",
            "At the run's folder, as each host sees it. Less than three checkpoints: see DiskNearlyFull.",
            ((f"min by (host) (spherescale_run_disk_free_bytes{_JOB})", "{{host}}"),),
            "bytes",
            lowest_first=True,
        ),
        Panel("Step", "Falls back to the last checkpoint at a restart.", _gauge("step", "step")),
        Panel("Restarts", "Since the run began.", _gauge("restarts_total", "restarts")),
    ),
}
