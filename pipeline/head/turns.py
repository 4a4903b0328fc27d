"""Whose turn it is: passes that add up to a step's gradient, and the update that must end it."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.ranks.collectives import Group
from pipeline.head.margins import Margin
from pipeline.head.margins.binary import BinaryMargin
from pipeline.head.options import HeadOptions
from pipeline.optim.rows import Rows


class Turns:
    """Counts the passes of a step, and refuses one that would add to a gradient that nobody uses.

    A step ends by `end` or, if the rows have no optimizer of their own, when another's has changed them or cleared
    their gradient.

    Args:
        rows: all rows.
        most: passes of a step.
        only_own: what in this head only an optimizer of its own can do, in words; empty: nothing.
    """

    def __init__(self, rows: Rows, most: int, only_own: Sequence[str]) -> None:
        self._rows, self._most, self._only_own = rows, most, tuple(only_own)
        self._passes, self._version = 0, -1

    def begin(self) -> None:
        """Count a pass.

        Raises:
            RuntimeError: when the step before was not ended.
        """
        weight_SD = self._rows.weight_SD
        foreign = self._rows.optimizer is None and not self._only_own
        if foreign and (weight_SD.grad is None or weight_SD._version != self._version):
            self.end()
        if self._passes == self._most:
            passes = self._passes + 1
            raise RuntimeError(f"head: got {passes} passes without an update of the rows, wanted {self._way()}")
        self._passes, self._version = self._passes + 1, weight_SD._version

    def end(self) -> None:
        """End the step."""
        self._passes = 0

    def _way(self) -> str:
        if self._rows.optimizer is not None:
            return f"update() or drop() after {self._most} (HeadOptions.accumulation)"
        if self._only_own:
            return f"an optimizer of the head's own, which {' and '.join(self._only_own)} needs"
        return "an optimizer of the head's own, or head.weight_SD among the parameters of yours"


def needs_own_optimizer(margin: Margin, options: HeadOptions, replicas: Group) -> list[str]:
    """What of a head an optimizer that is given its rows as any parameter could not do, in words."""
    found = {
        f"sample_rate {options.sample_rate}": options.sample_rate < 1,
        "unit_rows": options.unit_rows,
        f"the state of {margin.name}": bool(margin.initial_state()) or isinstance(margin, BinaryMargin),
        "replicas": replicas is not None,
    }
    return [words for words, there in found.items() if there]
