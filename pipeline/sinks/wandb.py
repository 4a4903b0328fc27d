"""Weights & Biases: a run of its own there, continued at every start."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from pipeline.files import make_folder, write_file
from pipeline.sinks.sink import SINKS, Sink, Tracked


@SINKS.add("wandb")
class WeightsAndBiases(Sink):
    """A run at Weights & Biases; its key is WANDB_API_KEY's or ``wandb login``'s, never the recipe's."""

    name: str = "wandb"
    project: str = "spherescale"
    """Project that the run belongs to."""
    entity: str | None = None
    """Team or user that owns the project; null: who is logged in."""
    mode: Literal["online", "offline"] = "online"
    """offline: write to RUN/sinks/wandb only, for ``wandb sync``."""

    def open(self, run: Tracked) -> WandbRun:
        """See `Sink.open`."""
        import wandb  # noqa: PLC0415 - an extra

        make_folder(run.folder)
        started = wandb.init(
            project=self.project,
            entity=self.entity,
            name=run.name,
            id=_id_of(run.folder / "id"),
            resume="allow",
            dir=str(run.folder),
            config=dict(run.keys),
            mode=self.mode,
            # What ranks print is theirs: it is neither sent nor mixed with lines of wandb's.
            settings=wandb.Settings(console="off", silent=True),
        )
        # Its own count of steps never goes back; a run that rolls back does.
        started.define_metric("*", step_metric="step")
        return WandbRun(wandb, started, run.name)


class WandbRun:
    """Writes to a run of W&B; the calls return before anything is sent."""

    def __init__(self, wandb: Any, run: Any, name: str) -> None:
        self._wandb, self._run, self._name = wandb, run, name

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Writer.scalars`."""
        self._run.log({"step": step, **values})

    def file(self, path: Path) -> None:
        """See `Writer.file`: an artifact of the type "report"."""
        artifact = self._wandb.Artifact(f"{self._name}-{path.stem}", type="report")
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def close(self, finished: bool) -> None:
        """See `Writer.close`."""
        self._run.finish(exit_code=0 if finished else 1)


def _id_of(file: Path) -> str:
    """The id under which W&B knows the run, the same at every start."""
    if not file.is_file():
        write_file(file, uuid4().hex[:12].encode())
    return file.read_text()
