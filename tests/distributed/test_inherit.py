"""A run started from another run on other people: rows go by name, newcomers start from their class mean."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.backbones.sphereface import SphereFaceBackbone
from pipeline.optim.sgd import SGD
from pipeline.reading.dali import Decoder, EncodedBatch
from pipeline.reading.tars import ShardSet
from pipeline.recipe.schema import Data, Head, Recipe
from pipeline.run.checkpoint import CheckpointError
from pipeline.run.imported import write_imported
from pipeline.shards.format.names import read_identities
from pipeline.training.inherit import Inherited, match
from tests.distributed.ranks import run_ranks
from tests.distributed.trainer import trainer_of
from tests.faces import ROOT, write_faces, write_shards
from tests.unit.run.saved import spoil

logger = logging.getLogger(__name__)


def test_match_is_by_name() -> None:
    assert match(["a", "b", "d"], ["b", "c", "d", "e"]).tolist() == [1, -1, 2, -1]
    assert match([], ["a"]).tolist() == [-1]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Seven people, and another set without the first two of them and with three newcomers."""
    root = tmp_path_factory.mktemp("inherit")
    old = write_shards(root, identities=7, images=6)
    faces = root / "new"
    shutil.copytree(root / "faces", faces)
    for gone in ("person000", "person001"):
        shutil.rmtree(faces / gone)
    write_faces(root / "more", identities=3, images=6, seed=9)
    for number, name in enumerate(("aaa", "person003b", "zzz")):
        shutil.copytree(root / "more" / f"person{number:03d}", faces / name)
    return old, shards_of(faces, root / "other")


def shards_of(faces: Path, folder: Path) -> Path:
    subprocess.run([sys.executable, ROOT / "stages/shard.py", faces, folder], check=True, capture_output=True)
    return folder


def recipe(shards: Path, steps: int = 4, **head: Any) -> Recipe:
    return Recipe(
        data=Data(shards=shards, global_batch=12, decode_threads=1),
        backbone=SphereFaceBackbone(name="sphereface4", embedding_dim=8),
        head=Head(**head),
        optimizer=SGD(steps=steps, learning_rate=0.02),
    )


def train_old(rank: int, ranks: int, plan: Recipe, run: Path) -> dict[str, Any]:
    trainer = trainer_of(rank, ranks, plan, run)
    list(trainer.train())
    if rank == 0:
        shutil.copyfile(plan.data.shards / "identities.txt", run / "identities.txt")
    return {"rows": trainer.head.weight_SD.detach().clone()}


def start_new(rank: int, ranks: int, plan: Recipe, run: Path, old_run: Path, new_rows: str) -> dict[str, Any]:
    trainer = trainer_of(rank, ranks, plan, run)
    random = trainer.head.weight_SD.detach().clone()
    inherited = trainer.inherit(old_run, None, new_rows)
    result = {
        "inherited": inherited,
        "random": random,
        "rows": trainer.head.weight_SD.detach().clone(),
        "backbone": {k: v.clone() for k, v in trainer.engine.parameters().items()},
    }
    losses = [record.loss for record in trainer.train()]
    return result | {"losses": losses}


def mean_directions(shards: ShardSet, backbone: torch.nn.Module, label: int) -> torch.Tensor:
    ids = np.flatnonzero(shards.labels(np.arange(shards.manifest.samples)) == label)
    encoded = EncodedBatch(shards.read(ids))
    (batch,) = Decoder(len(ids), 32, 32, torch.device("cpu"), 1).decode([encoded])
    with torch.no_grad():
        x = backbone.eval()(batch.images).double()
    return torch.nn.functional.normalize((x / x.norm(dim=1, keepdim=True)).mean(0), dim=0)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (3, 1), (2, 3)])
def test_rows_go_by_name_and_newcomers_start_from_their_mean(
    sets: tuple[Path, Path], tmp_path: Path, before: int, after: int
) -> None:

    old, new = sets
    old_rows = torch.cat([r["rows"] for r in run_ranks(train_old, before, recipe(old), tmp_path / "old")])
    results = run_ranks(start_new, after, recipe(new), tmp_path / "new", tmp_path / "old", "class_mean")
    assert all(r["inherited"] == Inherited(kept=5, new=3, dropped=2) for r in results)
    rows = torch.cat([r["rows"] for r in results])
    old_set, new_set = ShardSet(old), ShardSet(new)
    old_names, new_names = (read_identities(s.folder, s.manifest) for s in (old_set, new_set))
    backbone = SphereFaceBackbone(name="sphereface4", embedding_dim=8).build((32, 32))
    backbone.load_state_dict(results[0]["backbone"])
    kept = [old_rows[old_names.index(name)] for name in new_names if name in old_names]
    length = torch.stack(kept).norm(dim=1).mean()
    for label, name in enumerate(new_names):
        if name in old_names:
            assert torch.equal(rows[label], old_rows[old_names.index(name)])
        else:
            want = mean_directions(new_set, backbone, label) * length
            torch.testing.assert_close(rows[label].double(), want, rtol=1e-4, atol=1e-5)
    assert results[0]["losses"][-1] < np.log(8), "does not train from there"


def test_under_zero_3_a_rank_without_an_image_of_a_newcomer_embeds_with_the_others(
    sets: tuple[Path, Path], tmp_path: Path
) -> None:
    old, _ = sets
    shutil.copytree(old.with_name("faces"), tmp_path / "faces")
    write_faces(tmp_path / "more", identities=1, images=1, seed=9)
    shutil.copytree(tmp_path / "more/person000", tmp_path / "faces/zzz")
    new = shards_of(tmp_path / "faces", tmp_path / "shards")
    run_ranks(train_old, 1, recipe(old, steps=1), tmp_path / "old")
    plain, parted = (recipe(new, steps=1).model_copy(update={"zero_stage": stage}) for stage in (0, 3))
    (alone,) = run_ranks(start_new, 1, plain, tmp_path / "alone", tmp_path / "old", "class_mean")
    results = run_ranks(start_new, 2, parted, tmp_path / "new", tmp_path / "old", "class_mean")
    assert all(result["inherited"] == Inherited(kept=7, new=1, dropped=0) for result in results)
    rows = torch.cat([result["rows"] for result in results])
    torch.testing.assert_close(rows, alone["rows"], rtol=1e-5, atol=1e-6)


def test_random_newcomers_keep_their_first_rows(sets: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = sets
    run_ranks(train_old, 1, recipe(old), tmp_path / "old")
    (result,) = run_ranks(start_new, 1, recipe(new), tmp_path / "new", tmp_path / "old", "random")
    names = (new / "identities.txt").read_text().splitlines()
    for label, name in enumerate(names):
        if name in {"aaa", "person003b", "zzz"}:
            assert torch.equal(result["rows"][label], result["random"][label])


def fine_tune(rank: int, ranks: int, plans: list[Recipe], run: Path, imported: Path) -> list[dict[str, Any]]:
    """One step of each plan from imported weights: parameters before and after, rows before."""
    results = []
    for number, plan in enumerate(plans):
        trainer = trainer_of(rank, ranks, plan, run / str(number))
        inherited = trainer.inherit(imported, None, "class_mean")
        rows = trainer.head.weight_SD.detach().clone()
        before = {name: p.detach().clone() for name, p in trainer.engine.parameters().items()}
        list(trainer.train())
        after = {name: p.detach().clone() for name, p in trainer.engine.parameters().items()}
        results.append({"inherited": inherited, "rows": rows, "before": before, "after": after})
    return results


def test_imported_weights_are_fine_tuned_frozen_stages_staying(sets: tuple[Path, Path], tmp_path: Path) -> None:
    _, new = sets
    names = (new / "identities.txt").read_text().splitlines()
    torch.manual_seed(4)
    backbone = SphereFaceBackbone(name="sphereface4", embedding_dim=8)
    weights = backbone.build((32, 32)).state_dict()
    rows_CD = torch.randn(3, 8)
    write_imported(
        tmp_path / "theirs", backbone, weights, (32, 32), {}, rows=[rows_CD], identities=[*names[:2], "gone"]
    )
    frozen = backbone.model_copy(update={"frozen": ("stages.0", "stages.1"), "rate_factor": 0.125})
    plans = [recipe(new, steps=1), recipe(new, steps=1).model_copy(update={"backbone": frozen, "zero_stage": 1})]
    results = run_ranks(fine_tune, 2, plans, tmp_path / "new", tmp_path / "theirs")
    for whole, tuned in results:
        assert whole["inherited"] == tuned["inherited"] == Inherited(kept=2, new=6, dropped=1)
        for name, saved in weights.items():
            assert torch.equal(tuned["before"][name], saved)
            full, step = (run["after"][name] - saved for run in (whole, tuned))
            stays = name.startswith(("stages.0.", "stages.1."))
            torch.testing.assert_close(step, full * (0 if stays else 0.125), rtol=1e-3, atol=1e-7)
            assert torch.equal(step, torch.zeros_like(step)) == stays
    assert torch.equal(results[0][1]["rows"][:2], rows_CD[:2])


def refuse(rank: int, ranks: int, plan: Recipe, run: Path, old_run: Path) -> str:
    try:
        trainer_of(rank, ranks, plan, run).inherit(old_run, None, "random")
    except CheckpointError as error:
        return str(error)
    return "took it"


def test_what_does_not_fit_is_refused(sets: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = sets
    run_ranks(train_old, 1, recipe(old, steps=1), tmp_path / "old")
    other = recipe(new).model_copy(update={"backbone": SphereFaceBackbone(name="sphereface4", embedding_dim=4)})
    assert (
        "another backbone: got sphereface4 with embedding_dim 4"
        in run_ranks(refuse, 1, other, tmp_path / "a", tmp_path / "old")[0]
    )
    (tmp_path / "old" / "identities.txt").write_text("somebody else\n")
    assert "identities.txt: got SHA-256" in run_ranks(refuse, 1, recipe(new), tmp_path / "b", tmp_path / "old")[0]
    assert (
        "none: got no such folder, wanted the folder of a run"
        in run_ranks(refuse, 1, recipe(new), tmp_path / "c", tmp_path / "none")[0]
    )


def test_a_damaged_run_is_not_started_from(sets: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = sets
    run_ranks(train_old, 1, recipe(old, steps=1), tmp_path / "old")
    for rows in tmp_path.glob("old/checkpoints/*/rows-*"):
        spoil(rows)
    for refused in run_ranks(refuse, 2, recipe(new), tmp_path / "a", tmp_path / "old"):
        assert "got [0, 1], all of them damaged" in refused
