"""A start before ranks meet: what is read, what is refused, and what ranks have to agree on."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.recipe.schema import RecipeError
from pipeline.run.changes import fixed_keys
from pipeline.run.checkpoint import CheckpointError, Meta, encoded
from pipeline.run.folder import RunFolder
from pipeline.training.start import Start, check_start, read_start
from tests.faces import write_shards

RECIPE = """
data: {{shards: {shards}, global_batch: 12, decode_threads: 1}}
backbone: {{name: sphereface4, embedding_dim: 8}}
optimizer: {{steps: 4, learning_rate: 0.02}}
"""

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    file = folder / "night.yaml"
    file.write_text(RECIPE.format(shards=write_shards(folder)))
    return file


def start_of(recipe: Path, run: Path, *overrides: str) -> Start:
    return read_start(recipe, overrides, run)


def leave_a_checkpoint(start: Start) -> None:
    """As much of one as is looked at before ranks meet, and the recipe that made it."""
    RunFolder(start.run).checkpoint(2).mkdir(parents=True)
    (RunFolder(start.run).checkpoint(2) / "meta.json").touch()
    (start.run / "recipe.yaml").write_text(start.recipe.to_yaml())


def test_the_run_is_named_after_the_recipe_unless_it_has_a_name(recipe: Path, tmp_path: Path) -> None:
    assert read_start(recipe, [], None).run == Path("runs/night")
    assert start_of(recipe, tmp_path).run == tmp_path


def test_a_new_run_has_no_changes_and_is_not_finished(recipe: Path, tmp_path: Path) -> None:
    start = start_of(recipe, tmp_path)
    assert check_start(start, 2, may_resume=False) == []
    assert not start.is_finished


def test_a_run_that_is_there_is_resumed_with_its_changes_or_refused(recipe: Path, tmp_path: Path) -> None:
    leave_a_checkpoint(start_of(recipe, tmp_path))
    changed = start_of(recipe, tmp_path, "optimizer.learning_rate=0.01")
    assert check_start(changed, 1, may_resume=True) == ["optimizer.learning_rate: 0.02 → 0.01"]
    with pytest.raises(CheckpointError, match="holds checkpoints up to step 2; wanted an empty folder"):
        check_start(changed, 1, may_resume=False)
    with pytest.raises(RecipeError, match=r"seed: got 1, wanted 0 as in .*; start another run with --run"):
        check_start(start_of(recipe, tmp_path, "seed=1"), 1, may_resume=True)
    with pytest.raises(
        RecipeError, match=r"backbone.name: got sphereface10, wanted sphereface4 as in .*recipe.yaml; start another run"
    ):
        check_start(start_of(recipe, tmp_path, "backbone.name=sphereface10"), 1, may_resume=True)
    # and that advice helps
    assert check_start(start_of(recipe, tmp_path / "another", "seed=1"), 1, may_resume=True) == []


def test_a_run_keeps_the_streams_that_it_began_with(recipe: Path, tmp_path: Path) -> None:
    """Those by default may be others now, or may have been: they decide the order of the samples."""
    assert start_of(recipe, tmp_path).recipe.data.streams == 12
    assert start_of(recipe, tmp_path, "data.streams=2").recipe.data.streams == 2
    begun = start_of(recipe, tmp_path, "data.streams=3")
    leave_a_checkpoint(begun)
    assert start_of(recipe, tmp_path).recipe.data.streams == 3
    with pytest.raises(RecipeError, match=r"data.streams: got 4, wanted 3 as in .*recipe.yaml"):
        check_start(start_of(recipe, tmp_path, "data.streams=4"), 1, may_resume=True)
    facts = Meta(2, 4, 8, begun.shards.manifest.identities_sha256, 1, fixed=fixed_keys(begun.recipe))
    (RunFolder(tmp_path).checkpoint(2) / "meta.json").write_bytes(encoded(facts))
    (tmp_path / "recipe.yaml").unlink()
    assert start_of(recipe, tmp_path).recipe.data.streams == 3
    (RunFolder(tmp_path).checkpoint(2) / "meta.json").write_bytes(encoded(replace(facts, fixed={})))
    assert start_of(recipe, tmp_path).recipe.data.streams == 1, "the default when nothing was said"


def test_other_shards_and_fixed_keys_are_refused_before_ranks_meet(recipe: Path, tmp_path: Path) -> None:
    start = start_of(recipe, tmp_path)
    leave_a_checkpoint(start)
    people = start.shards.manifest.identities_sha256
    facts = Meta(2, 4, 8, people, 1, shards_sha256="0" * 64, fixed=fixed_keys(start.recipe))
    (RunFolder(tmp_path).checkpoint(2) / "meta.json").write_bytes(encoded(facts))
    digest = start.shards.manifest.digest[:12]
    with pytest.raises(RecipeError, match=f"got the set {digest}, wanted 0{{12}} as in .*accept_shards={digest}"):
        check_start(start, 1, may_resume=True)
    accepted = start_of(recipe, tmp_path, f"data.accept_shards={digest}")
    assert check_start(accepted, 1, may_resume=True) == [f"data.accept_shards: None → {digest}"]
    (tmp_path / "recipe.yaml").unlink()  # what is fixed stands in the checkpoint
    with pytest.raises(RecipeError, match=r"seed: got 1, wanted 0 as in .*meta.json"):
        check_start(start_of(recipe, tmp_path, "seed=1"), 1, may_resume=True)


def test_ranks_that_do_not_divide_the_batch_are_refused(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data.global_batch: got 12, wanted a multiple of 5"):
        check_start(start_of(recipe, tmp_path), 5, may_resume=True)


def test_ranks_agree_on_recipe_shards_code_and_versions(recipe: Path, tmp_path: Path) -> None:
    facts = start_of(recipe, tmp_path / "here").facts()
    assert facts == start_of(recipe, tmp_path / "there").facts()
    assert {"code", "shards' manifest", "version of torch", "recipe optimizer.steps"} <= facts.keys()
    other = start_of(recipe, tmp_path, "optimizer.steps=5").facts()
    assert {key for key in facts if facts[key] != other[key]} == {"recipe optimizer.steps"}
    json.dumps(facts)  # they travel as text


@pytest.mark.parametrize("stage", ["train", "supervise"])
def test_a_start_is_checked_before_deepspeed_and_dali_are_loaded(stage: str) -> None:
    """They take seconds, and DeepSpeed writes to standard output: not for --help, nor for a key with a typo."""
    script = (
        f"import sys, stages.{stage}; print([name for name in ('deepspeed', 'nvidia.dali') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
