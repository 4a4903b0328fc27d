"""Sampled first, exact last: the switch of sampling, augmentation and rate is exact across resumes and ranks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from pipeline.backbones.sphereface import SphereFaceBackbone
from pipeline.head.margins.arcface import ArcFace
from pipeline.optim.optimizer import RatePhase
from pipeline.optim.sgd import SGD
from pipeline.reading.augment import Blur, Crop, Mirror
from pipeline.recipe.phases import AugmentPhase, Phase
from pipeline.recipe.schema import Checkpoint, Data, Head, Log, Recipe
from pipeline.run.folder import RunFolder
from tests.distributed.ranks import run_ranks
from tests.distributed.trainer import trainer_of
from tests.faces import write_shards

STEPS, SWITCH = 8, 5
RESUMES = (SWITCH - 1, SWITCH, SWITCH + 1)
MIRROR = Mirror(name="mirror")
SAMPLED = Head(margin=ArcFace(scale=16), sample_rate=0.4)


def recipe(shards: Path, head: Head, *, phased: bool, fused: bool = False) -> Recipe:
    later = (MIRROR, Crop(name="crop", padding=2), Blur(name="blur", probability=0.5))
    return Recipe(
        seed=3,
        data=Data(
            shards=shards,
            global_batch=12,
            streams=2,
            decode_threads=1,
            phases=(AugmentPhase(start=SWITCH, augment=later),) if phased else (),
        ),
        backbone=SphereFaceBackbone(name="sphereface4", embedding_dim=8),
        head=head.model_copy(update={"fused_update": fused}),
        optimizer=SGD(
            steps=STEPS,
            learning_rate=0.02,
            power=1,
            phases=(RatePhase(start=SWITCH, learning_rate=0.01, warmup_steps=2),) if phased else (),
        ),
        checkpoint=Checkpoint(every=1, keep=STEPS),
        log=Log(suspect_degrees=75),
    )


def exact_from(start: int) -> Head:
    return SAMPLED.model_copy(update={"phases": (Phase(start=start, sample_rate=1.0),)})


def train(rank: int, ranks: int, plan: Recipe, run: Path, resume: int | None = None) -> dict[str, Any]:
    trainer = trainer_of(rank, ranks, plan, run, resume)
    losses, rates = [], []
    for record in trainer.train():
        losses.append(record.loss)
        rates.append(record.learning_rate)
    state = {**trainer.engine.parameters(), "rows": trainer.head.weight_SD, **trainer.head.slots}
    return {
        "losses": losses,
        "rates": rates,
        "state": {name: value.clone() for name, value in state.items()},
        "cosines": {file.name: np.fromfile(file, "<f2") for file in RunFolder(run).cosines.iterdir()},
        "suspects": RunFolder(run).suspects.read_text(),
    }


def killed(rank: int, ranks: int, plan: Recipe, folder: Path) -> dict[int | None, dict[str, Any]]:
    """A whole run (None), and what a run does that is killed after each of some steps."""
    results: dict[int | None, dict[str, Any]] = {None: train(rank, ranks, plan, folder / "whole")}
    for step in RESUMES:
        again = folder / f"from {step}"
        if rank == 0:
            shutil.copytree(folder / "whole", again)
            for later in range(step + 1, STEPS + 1):
                shutil.rmtree(RunFolder(again).checkpoint(later))
            for file in RunFolder(again).cosines.iterdir():
                cosines = np.fromfile(file, "<f2")
                first = int(file.stem.split("-")[1]) * len(cosines)
                cosines[max(0, 12 * step - first) :] *= 0  # which the resumed run must write again
                cosines.tofile(file)
        dist.barrier()
        results[step] = train(rank, ranks, plan, again, step)
    return results


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("set"), identities=17, images=4)


@pytest.mark.parametrize("fused", [False, True])
def test_a_run_that_is_killed_around_the_switch_ends_as_the_whole_one(
    shards: Path, tmp_path: Path, fused: bool
) -> None:
    plan = recipe(shards, exact_from(SWITCH), phased=True, fused=fused)
    for results in run_ranks(killed, 2, plan, tmp_path):
        whole = results.pop(None)
        assert whole["rates"][SWITCH : SWITCH + 2] == [0.005, 0.01]
        for step, again in results.items():
            assert again["losses"] == whole["losses"][step:]
            assert again["suspects"] == whole["suspects"]
            for name, cosines in whole["cosines"].items():
                np.testing.assert_array_equal(again["cosines"][name], cosines)
            assert all(torch.equal(value, again["state"][name]) for name, value in whole["state"].items())


def test_the_switch_is_the_same_on_any_number_of_ranks(shards: Path, tmp_path: Path) -> None:
    plan = recipe(shards, exact_from(SWITCH), phased=True)
    one, *others = [run_ranks(train, ranks, plan, tmp_path / str(ranks))[0] for ranks in (1, 2, 3)]
    for other in others:
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-5)
        for name, cosines in one["cosines"].items():
            np.testing.assert_allclose(cosines, other["cosines"][name], atol=2e-3)


def all_of(rank: int, ranks: int, plans: dict[str, Recipe], folder: Path) -> dict[str, list[float]]:
    return {name: train(rank, ranks, plan, folder / name)["losses"] for name, plan in plans.items()}


def test_it_is_the_sampled_softmax_before_and_the_exact_one_after(shards: Path, tmp_path: Path) -> None:
    heads = {
        "sampled": SAMPLED,
        "exact": SAMPLED.model_copy(update={"sample_rate": 1.0}),
        "phased": exact_from(SWITCH),
        "from the start": exact_from(0),
    }
    plans = {name: recipe(shards, head, phased=False) for name, head in heads.items()}
    losses = run_ranks(all_of, 1, plans, tmp_path)[0]
    assert losses["from the start"] == losses["exact"]
    assert losses["phased"][:SWITCH] == losses["sampled"][:SWITCH]
    # the same weights, and more classes in the sum
    assert losses["phased"][SWITCH] > losses["sampled"][SWITCH] + 0.1
