"""The layout of a run's folder: the only module that spells the names of its files and folders.

Prometheus reads ``targets/`` and `Makefile` waits for a checkpoint's ``meta.json``: those two repeat a name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PARTIAL = ".partial"
_STEP = "step-"


@dataclass(frozen=True)
class RunFolder:
    """The places in a run's folder; nothing is read or made.

    Args:
        path: the folder.
    """

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe, YAML."""
        return self.path / "recipe.yaml"

    @property
    def facts(self) -> Path:
        """The command, where it ran, its restarts and versions, JSON."""
        return self.path / "run.json"

    @property
    def identities(self) -> Path:
        """The name of each class, a line each."""
        return self.path / "identities.txt"

    @property
    def history(self) -> Path:
        """The starts of the run, a JSON object a line."""
        return self.path / "history.jsonl"

    @property
    def undecodable(self) -> Path:
        """The samples that could not be decoded, a line each; see `pipeline.shards.views.undecodable`."""
        return self.path / "undecodable.tsv"

    @property
    def suspects(self) -> Path:
        """The samples whose label is doubtful, a line each; see `pipeline.run.angles`."""
        return self.path / "suspects.tsv"

    @property
    def cosines(self) -> Path:
        """The target cosines of the newest epochs, a file each."""
        return self.path / "cosines"

    @property
    def left(self) -> Path:
        """What the run had of steps that it has gone back from, a folder for each time."""
        return self.path / "left"

    @property
    def metrics(self) -> Path:
        """The log of training, a JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def goodput(self) -> Path:
        """Where the run's wall time went, JSON; see `cluster.goodput`."""
        return self.path / "goodput.json"

    @property
    def stacks(self) -> Path:
        """What every rank was at when the run hung, a file for each."""
        return self.path / "stacks"

    @property
    def best(self) -> Path:
        """Which checkpoint verifies best, JSON."""
        return self.path / "best.json"

    @property
    def claims(self) -> Path:
        """Who trains in the folder, see `cluster.lease`."""
        return self.path / "claims"

    @property
    def targets(self) -> Path:
        """Where Prometheus finds each rank."""
        return self.path / "targets"

    @property
    def evaluations(self) -> Path:
        """A folder for each evaluation set."""
        return self.path / "evaluations"

    @property
    def identifications(self) -> Path:
        """A folder for each set of distractors that was searched."""
        return self.path / "identifications"

    @property
    def templates(self) -> Path:
        """A folder for each set of templates, IJB-B or IJB-C."""
        return self.path / "ijb"

    @property
    def embeddings(self) -> Path:
        """Features that evaluations keep, a folder for each network and list of images."""
        return self.path / "embeddings"

    @property
    def network(self) -> Path:
        """Which network the results are of, if it is not the run's, JSON."""
        return self.path / "network.json"

    @property
    def report(self) -> Path:
        """The page about the run's evaluations."""
        return self.path / "report.html"

    def sink(self, name: str) -> Path:
        """What a tracker of ``log.sinks`` keeps of the run."""
        return self.path / "sinks" / name

    @property
    def checkpoints(self) -> Path:
        """A folder for each checkpoint."""
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint after `step` steps."""
        return self._folder_of(step, "")

    def partial(self, step: int) -> Path:
        """The folder that a save of `step` is written into; it is renamed to `checkpoint` once it is whole."""
        return self._folder_of(step, PARTIAL)

    def fault(self, step: int) -> Path:
        """What is known of a bad step, JSON."""
        return self.path / "faults" / f"{_STEP}{step:08d}.json"

    def trace(self, step: int) -> Path:
        """What a step did when, Chrome's JSON; a snapshot of the GPU's memory has the same name."""
        return self.path / "profile" / f"{_STEP}{step:08d}.json"

    def saved_steps(self) -> list[int]:
        """Steps that have a checkpoint's folder, rising, whatever is in it."""
        return self._steps("")

    def partial_steps(self) -> list[int]:
        """Steps that a save has begun to write and not finished, rising."""
        return self._steps(PARTIAL)

    def results_after(self, step: int) -> list[Path]:
        """Files of evaluations, identifications and comparisons of templates of later steps."""
        found = []
        for kind in (self.evaluations, self.identifications, self.templates):
            for file in sorted(kind.glob(f"*/{_STEP}*")):
                number = re.fullmatch(rf"{_STEP}(\d+)\.(json|npz)", file.name)
                if number and int(number[1]) > step:
                    found.append(file)
        return found

    def _steps(self, suffix: str) -> list[int]:
        # Exactly the names that are ours: a user may keep step-00000006.bak beside them.
        steps = []
        for place in self.checkpoints.glob(f"{_STEP}*"):
            number = re.match(rf"{_STEP}(\d+)", place.name)
            if number and place == self._folder_of(int(number[1]), suffix) and place.is_dir():
                steps.append(int(number[1]))
        return sorted(steps)

    def _folder_of(self, step: int, suffix: str) -> Path:
        return self.checkpoints / f"{_STEP}{step:08d}{suffix}"
