"""What one step was: the facts that the loop's observers read, and its numbers under the names of the metrics."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from cluster.metrics import PERCENTILES
from pipeline.head.health import TargetAngles
from pipeline.planning.utilisation import Floors
from pipeline.run.saver import Saved
from pipeline.training.step import Outcome, Severity

# Name of a row in `cluster.metrics.METRICS` -> its value or, if the row has a label, the value of each label.
Values = Mapping[str, float | Mapping[str, float]]


@dataclass(frozen=True)
class Record:
    """One step, as the observers of every rank see it.

    Attributes:
        step: steps done, this one included.
        epoch: passes over the set, with the fraction of the current one.
        loss: mean over the decodable samples of the global batch, the same on every rank.
        lambda_: the margin's λ; None if it has none.
        learning_rate: the base rate.
        samples: in the global batch, undecodable ones included.
        seconds: wall time of the step on this rank.
        parts: the same by part; what is left over is bookkeeping.
        measured: the step's other numbers, as in `values`.
        waited_seconds: of the step before, for slower ranks; a part of its communication.
        stall_seconds: how long the loop stood still to copy the state out for a checkpoint; None without one.
        saved: how a save ended, if one did during this step.
        skipped: why nothing of the step was applied, a `Severity`'s name in lower case; None if it was applied.
        stopping: whether the run ends here because a rank was asked to stop; the same on every rank.
    """

    step: int
    epoch: float
    loss: float
    lambda_: float | None
    learning_rate: float
    samples: int
    seconds: float
    parts: Mapping[str, float]
    measured: Values
    waited_seconds: float = 0.0
    stall_seconds: float | None = None
    saved: Saved | None = None
    skipped: str | None = None
    stopping: bool = False

    @property
    def own_seconds(self) -> float:
        """This rank's own work: all parts but communication, which is waiting for others as well."""
        return sum(seconds for part, seconds in self.parts.items() if part != "communication")

    @property
    def values(self) -> Values:
        """Every number of the step, by the name of its row in `cluster.metrics`.

        For a gauge the value after the step, for a counter what the step adds, for a histogram one observation. A step
        of which nothing was applied has no loss.
        """
        values: dict[str, float | Mapping[str, float]] = {
            "step": self.step,
            "epoch": self.epoch,
            "position_samples": self.step * self.samples,
            "learning_rate": self.learning_rate,
            "step_seconds": self.seconds,
            "step_part_seconds_total": self.parts,
        }
        if self.lambda_ is not None:
            values["margin_lambda"] = self.lambda_
        if self.skipped is None:
            values["loss"] = self.loss
        else:
            values["skipped_steps_total"] = {self.skipped: 1}
        if self.stall_seconds is not None:
            values["checkpoint_stall_seconds_total"] = self.stall_seconds
        return values | dict(self.measured)


def measured(outcome: Outcome, angles: TargetAngles | None, chance: float) -> Values:
    """The numbers that a step's outcome gives: the place to add one.

    Args:
        outcome: of the step.
        angles: the distribution of the target angles; None if the step was left out.
        chance: the loss of guessing, ln C for a softmax.
    """
    values: dict[str, float | Mapping[str, float]] = {}
    if outcome.severity == Severity.GOOD:
        if outcome.valid_G.any():
            values["target_cosine"] = outcome.target_cosine_G[outcome.valid_G].mean().item()
            values["embedding_norm"] = outcome.embedding_norm_G[outcome.valid_G].mean().item()
        values["gradient_norm"] = outcome.gradient_norm
        if outcome.clip_ratio is not None:
            values["gradient_clip_ratio"] = outcome.clip_ratio
        values["loss_over_chance_ratio"] = outcome.loss / chance
    if angles is not None:
        if angles.beyond_pi is not None:
            values["margin_angle_beyond_pi_ratio"] = angles.beyond_pi
        values["target_angle_radians"] = dict(zip(PERCENTILES, angles.quantiles, strict=True))
    return values


def shares_of(floors: Floors, seconds: float, parts: Mapping[str, float]) -> Values:
    """How near a step came to the least time that its card could take.

    Args:
        floors: of the step.
        seconds: that it took.
        parts: the same by part.
    """
    values = {"mfu_ratio": floors.step / seconds}
    if parts.get("head"):
        values["head_floor_ratio"] = floors.head / parts["head"]
    return values


def memory_by_part(*, head: int, backbone: int, allocated: int, reserved: int) -> Values:
    """The GPU memory of this process at its fullest, by part.

    Args:
        head, backbone: what they hold between steps: parameters, optimizer state, kept gradients.
        allocated: the most bytes in tensors so far; what of it is neither's is activations, gradients, blocks, batches.
        reserved: the most bytes that torch has taken from the device so far.
    """
    working = allocated - head - backbone
    return {"gpu_part_bytes": {"head": head, "backbone": backbone, "working": working, "unused": reserved - allocated}}


def series_of(values: Values) -> Iterator[tuple[str, str, float]]:
    """Every single value as (name, label, value); the label is empty if the row has none."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            for label, part in value.items():
                yield name, label, part
        else:
            yield name, "", value


class Window:
    """Means over the last few records, so that the numbers shown are calm."""

    def __init__(self, length: int) -> None:
        self._records: deque[Record] = deque(maxlen=length)

    def add(self, record: Record) -> None:
        """Take one more record in, and drop the oldest if the window is full."""
        self._records.append(record)

    @property
    def samples_per_second(self) -> float:
        """Samples a second over all ranks."""
        return sum(r.samples for r in self._records) / self.step_seconds / len(self._records)

    @property
    def step_seconds(self) -> float:
        """Mean seconds a step."""
        return sum(r.seconds for r in self._records) / len(self._records)

    @property
    def parts(self) -> dict[str, float]:
        """Mean seconds a step, by part."""
        sums: dict[str, float] = {}
        for name, seconds in chain.from_iterable(record.parts.items() for record in self._records):
            sums[name] = sums.get(name, 0.0) + seconds
        return {name: sums[name] / len(self._records) for name in sorted(sums)}
