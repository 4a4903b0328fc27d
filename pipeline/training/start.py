"""A start of training before its ranks have met: what it is given, read and checked, and what ranks must agree on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.versions import code_digest, versions
from pipeline.evaluation.sets import VerificationSet, is_finished, sets_of
from pipeline.reading.tars import ShardSet
from pipeline.recipe.file import load_recipe
from pipeline.recipe.fit import check_against_set
from pipeline.recipe.schema import Init, Recipe, RecipeError
from pipeline.run.changes import changes, changes_since, fixed_keys, flat, refuse_another_network, with_streams
from pipeline.run.checkpoint import CheckpointError, Meta, complete_steps, read_meta
from pipeline.run.folder import RunFolder
from pipeline.training.observers.exporter import endpoint_tls


@dataclass(frozen=True)
class Start:
    """What to train on what, and where.

    Attributes:
        recipe, shards: the run.
        sets: the verification sets that the recipe names.
        run: the run's folder, which need not exist.
        from_step: the checkpoint to go back to; None: the newest.
    """

    recipe: Recipe
    shards: ShardSet
    sets: Sequence[VerificationSet]
    run: Path
    from_step: int | None = None

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing left to do: trained to the last step, and evaluated there."""
        return self.from_step is None and is_finished(self.run, self.recipe, self.sets)

    def check_ranks(self, num_ranks: int) -> None:
        """Raises RecipeError when the recipe cannot be trained on so many ranks."""
        manifest = self.shards.manifest
        check_against_set(
            self.recipe,
            samples=manifest.samples,
            identities=manifest.identities,
            image_size=(manifest.image_height, manifest.image_width),
            num_ranks=num_ranks,
        )

    def facts(self) -> dict[str, str]:
        """What must be the same on every rank, or they would train different things."""
        same = {f"version of {name}": version for name, version in versions().items()}
        same |= {"code": code_digest(), "shards' manifest": self.shards.manifest.digest[:12]}
        keys = {f"recipe {key}": str(value) for key, value in flat(self.recipe.model_dump(mode="json")).items()}
        pairs = {f"pairs of {chosen.name}": chosen.sha256[:12] for chosen in self.sets}
        return same | keys | pairs


def read_start(recipe: Path, overrides: Sequence[str], run: Path | None, from_step: int | None = None) -> Start:
    """Read all that a start names.

    Args:
        recipe: YAML file.
        overrides: ``key=value``, each changes one key of the recipe.
        run: the run's folder; None: ``runs/`` and the recipe's name.
        from_step: the checkpoint to go back to; None: the newest.

    Raises:
        RecipeError, ShardError: naming the key or the file.
    """
    resolved = load_recipe(recipe, list(overrides))
    place = run or Path("runs") / recipe.stem
    shards = ShardSet(resolved.data.shards)
    return Start(with_streams(place, resolved, shards.manifest), shards, sets_of(resolved), place, from_step)


def check_start(start: Start, num_ranks: int, may_resume: bool) -> list[str]:
    """Check all that a rank can check before it meets the others.

    Returns:
        what changed in the recipe since the run in the folder began, a line each; none for a new run.

    Raises:
        RecipeError: when the recipe does not go with the ranks, its files or the run in the folder.
        CheckpointError: when the folder holds a run, and the start must not resume.
    """
    start.check_ranks(num_ranks)
    endpoint_tls(start.recipe)
    saved = complete_steps(start.run)
    if saved and not may_resume:
        raise CheckpointError(f"{start.run}: holds checkpoints up to step {saved[-1]}; wanted an empty folder")
    if not saved:
        _check_init(start.recipe.init)
        return []
    _check_past(start, saved)
    refuse_another_network(start.run, start.recipe)
    return changes(start.run, start.recipe)


def _check_init(init: Init) -> None:
    """Refuse a run to begin from that is not there, or has not saved the step."""
    if init.run is None:
        return
    steps = complete_steps(init.run)
    if not steps:
        got = f"{init.run} without a checkpoint" if init.run.is_dir() else f"{init.run}, which is not there"
        raise RecipeError(f"init.run: got {got}, wanted the folder of a run that has saved one, or null")
    if init.step is not None and init.step not in steps:
        raise RecipeError(f"init.step: got {init.step}, wanted one of {steps} in {init.run}, or null for the newest")


def _check_past(start: Start, saved: Sequence[int]) -> None:
    """Refuse now, by the newest checkpoint, what would be refused again when one is loaded."""
    manifest = start.shards.manifest
    people = manifest.identities_sha256
    now = Meta(0, 0, 0, people, 0, shards_sha256=manifest.digest, fixed=fixed_keys(start.recipe))
    step = saved[-1] if start.from_step is None else start.from_step
    try:
        newest = read_meta(RunFolder(start.run).checkpoint(step))
    except CheckpointError:  # damaged, and passed over later
        newest = Meta(step, 0, 0, "", 0)
    changes_since(start.run, newest, now, start.recipe)
