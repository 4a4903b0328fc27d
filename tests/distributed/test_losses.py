"""Losses that remember or draw something: a run of each resumes bit for bit, and alike on another number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import planning
from pipeline.backbones.sphereface import SphereFaceBackbone
from pipeline.head.margins import MARGINS
from pipeline.optim.sgd import SGD
from pipeline.planning import Network
from pipeline.planning.of_recipe import job_of
from pipeline.recipe.schema import Checkpoint, Data, Head, Recipe
from tests.distributed.ranks import run_ranks
from tests.distributed.trainer import trainer_of
from tests.faces import write_shards

STEPS, SAVED = 6, 3
# Norms here are about 1.5, and their deviation 0.3: running means that follow fast get there.
LOSSES: dict[str, dict[str, Any]] = {
    "adaface": {"name": "adaface", "scale": 8, "rate": 0.5},
    "curricularface": {"name": "curricularface", "scale": 8, "rate": 0.5},
    "sphereface2": {"name": "sphereface2", "scale": 8},
    "uniface": {"name": "uniface", "scale": 8},
    "elasticface": {"name": "elasticface_arc", "scale": 8, "deviation": 0.5},
    "magface": {"name": "magface", "scale": 8, "norm_low": 1, "norm_high": 3},
}
# (loss, ranks) -> micro-batches: what is drawn for a sample is the same for another number of these, too.
PARTS = {("elasticface", 2): 2}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("set"), identities=7, images=6)


def recipe(shards: Path, loss: str, ranks: int) -> Recipe:
    return Recipe(
        seed=3,
        data=Data(
            shards=shards, global_batch=12, streams=2, decode_threads=1, accumulation=PARTS.get((loss, ranks), 1)
        ),
        backbone=SphereFaceBackbone(name="sphereface4", embedding_dim=8),
        head=Head(margin=MARGINS.parse(LOSSES[loss])),
        optimizer=SGD(steps=STEPS, learning_rate=0.05),
        checkpoint=Checkpoint(every=SAVED),
    )


def train_each(rank: int, ranks: int, shards: Path, runs: Path, resume: int | None = None) -> dict[str, Any]:
    """A run of each loss."""
    found = {}
    for loss in LOSSES:
        trainer = trainer_of(rank, ranks, recipe(shards, loss, ranks), runs / loss, resume)
        records = list(trainer.train())
        losses = [record.loss for record in records]
        sent = records[-1].values["communication_bytes_total"]
        assert isinstance(sent, dict)
        state = {name: value.clone() for name, value in trainer.head.state.items()}
        rows = trainer.head.weight_SD.detach().clone()
        found[loss] = {"losses": losses, "state": state, "rows": rows, "sent": sent["head"]}
    return found


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Runs on two ranks, to their end."""
    runs = tmp_path_factory.mktemp("runs")
    return runs, run_ranks(train_each, 2, shards, runs)


@pytest.fixture(scope="module", params=[2, 3])
def resumed(
    request: pytest.FixtureRequest, shards: Path, whole: tuple[Path, list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """The same from the middle on, on as many ranks and on one more."""
    return run_ranks(train_each, request.param, shards, whole[0], SAVED)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_run_resumes(loss: str, whole: tuple[Path, list[dict[str, Any]]], resumed: list[dict[str, Any]]) -> None:
    want, got = ([result[loss] for result in results] for results in (whole[1], resumed))
    for result in got:
        assert result["losses"] == pytest.approx(want[0]["losses"][SAVED:], rel=1e-5)
        assert all(torch.equal(value, got[0]["state"][name]) for name, value in result["state"].items()), "ranks differ"
        for name, value in want[0]["state"].items():
            torch.testing.assert_close(result["state"][name], value, rtol=1e-5, atol=1e-6)
    if len(got) == len(want):
        for first, second in zip(want, got, strict=True):
            assert second["losses"] == first["losses"][SAVED:]
            assert torch.equal(second["rows"], first["rows"])
            assert all(torch.equal(second["state"][name], value) for name, value in first["state"].items())
    first = MARGINS.parse(LOSSES[loss]).initial_state()
    assert all(not torch.equal(want[0]["state"][name], value) for name, value in first.items()), "nothing was seen"


@pytest.mark.parametrize("loss", LOSSES)
def test_a_rank_sends_what_is_planned(
    loss: str, shards: Path, whole: tuple[Path, list[dict[str, Any]]], resumed: list[dict[str, Any]]
) -> None:
    for results in (whole[1], resumed):
        ranks = len(results)
        planned = planning.traffic(job_of(recipe(shards, loss, ranks), 7, ranks), Network(0, 0, 0))
        agreement = 2 * (ranks - 1) / ranks * 4 * (3 + 4 * ranks)
        assert results[0][loss]["sent"] == pytest.approx(sum(planned.values()) + agreement, abs=8)
