"""Wrong labels that are put into a training set on purpose, and how well target angles tell them from the others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.reading.tars import ShardSet
from pipeline.recipe.schema import Recipe
from pipeline.run.angles import TargetCosines
from pipeline.run.folder import RunFolder
from pipeline.shards.making.build import make_shards
from pipeline.shards.making.plan import make_plan
from pipeline.shards.sources.detect import open_source
from tests.distributed.trainer import trainer_of


@dataclass(frozen=True)
class Angles:
    """Mean target angles over a run's last epochs, in degrees, of samples with a wrong label and of the others."""

    wrong: NDArray[np.float64]
    right: NDArray[np.float64]

    def area(self) -> float:
        """Under the ROC curve: how often a wrong label's angle is the larger of the two."""
        below = np.searchsorted(np.sort(self.right), self.wrong)
        return float(below.mean() / len(self.right))

    def beyond(self, degrees: float) -> tuple[float, float]:
        """The shares of the wrong and of the right labels that are beyond an angle: what is found, and false alarms."""
        return float((self.wrong > degrees).mean()), float((self.right > degrees).mean())

    def at(self, false_alarms: float) -> tuple[float, float]:
        """The angle that a share of the right labels is beyond, and the share of the wrong ones that is found there."""
        degrees = float(np.quantile(self.right, 1 - false_alarms))
        return degrees, self.beyond(degrees)[0]


def write_mislabelled(faces: Path, out: Path, share: float, seed: int = 0) -> Path:
    """Shards of identity folders, a share of whose images, drawn at random, are each given to another person."""
    chance = np.random.default_rng(seed)
    images = sorted(path for path in faces.glob("*/*") if path.is_file())
    people = np.unique([image.parent.name for image in images])
    person = np.searchsorted(people, [image.parent.name for image in images])
    wrong = chance.choice(len(images), round(share * len(images)), replace=False)
    person[wrong] = (person[wrong] + chance.integers(1, len(people), len(wrong))) % len(people)
    listed = out.with_suffix(".txt")
    listed.write_text("".join(f"{image.resolve()}\t{people[p]}\n" for image, p in zip(images, person, strict=True)))
    make_shards(make_plan(open_source(listed), out, seed=0, samples_per_tar=1000, size=None), workers=1)
    return out


def is_mislabelled(shards: ShardSet, faces: Path) -> NDArray[np.bool_]:
    """Whether each sample of a set has another label than the folder that its very bytes lie in."""
    person_of = {path.read_bytes(): path.parent.name for path in faces.glob("*/*") if path.is_file()}
    names = (shards.folder / "identities.txt").read_text().splitlines()
    samples = np.arange(shards.manifest.samples)
    labels = [names[label] for label in shards.labels(samples)]
    pairs = zip(shards.read(samples), labels, strict=True)
    return np.array([person_of[jpeg.tobytes()] != label for jpeg, label in pairs])


def angles_by_epoch(rank: int, ranks: int, plan: Recipe, run: Path, faces: Path) -> list[Angles]:
    """Train a recipe that keeps target angles on a set that `write_mislabelled` made of `faces`; what is known after
    each epoch."""
    trainer = trainer_of(rank, ranks, plan, run)
    kept = TargetCosines(RunFolder(run).cosines, trainer.order, trainer.shards.manifest.digest)
    wrong = is_mislabelled(trainer.shards, faces)
    found = []
    for record in trainer.train():
        epoch, step_in_epoch = divmod(record.step, trainer.order.steps_per_epoch)
        if step_in_epoch == 0:
            cosines = kept.means(epoch - 1)
            angles, seen = np.degrees(np.arccos(np.clip(cosines, -1, 1))).astype(np.float64), ~np.isnan(cosines)
            found.append(Angles(angles[wrong & seen], angles[~wrong & seen]))
    return found
