"""TensorBoard: event files below the run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.sinks.sink import SINKS, Sink, Tracked


@SINKS.add("tensorboard")
class TensorBoard(Sink):
    """Event files in RUN/sinks/tensorboard: ``tensorboard --logdir runs`` finds them."""

    name: str = "tensorboard"

    def open(self, run: Tracked) -> Events:
        """See `Sink.open`."""
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an extra

        # What it holds of later steps is hidden: the run goes back to `step`, and does them again.
        events = SummaryWriter(str(run.folder), purge_step=run.step + 1)
        events.add_text("recipe", "".join(f"    {key}: {value}\n" for key, value in run.keys.items()), run.step)
        return Events(events)


class Events:
    """Writes event files."""

    def __init__(self, events: Any) -> None:
        self._events = events

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Writer.scalars`."""
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()

    def file(self, path: Path) -> None:
        """TensorBoard keeps no files: a text says where it is."""
        self._events.add_text(path.name, str(path.absolute()))

    def close(self, finished: bool) -> None:  # noqa: ARG002 - TensorBoard knows no such state
        """See `Writer.close`."""
        self._events.close()
