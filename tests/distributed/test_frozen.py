"""A network with a frozen parameter (IResNet holds the scale of its last batch norm at 1), at every ZeRO stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist

from cluster.topology import Topology
from pipeline.backbones.iresnet import IResNetBackbone
from pipeline.optim.sgd import SGD
from pipeline.reading.tars import ShardSet
from pipeline.recipe.schema import Checkpoint, Data, Recipe
from pipeline.run.checkpoint import BACKBONE
from pipeline.run.folder import RunFolder
from pipeline.run.tensor_file import TensorFile
from pipeline.training.loop import Trainer
from tests.distributed.ranks import run_ranks
from tests.faces import write_shards

FROZEN = "features.weight"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("set"), identities=5, images=2, height=16, width=16)


def recipe(shards: Path, zero_stage: Literal[0, 1, 2, 3]) -> Recipe:
    return Recipe(
        data=Data(shards=shards, global_batch=4, decode_threads=1),
        backbone=IResNetBackbone(name="iresnet18", embedding_dim=6),
        optimizer=SGD(steps=2, learning_rate=0.01),
        checkpoint=Checkpoint(every=1),
        zero_stage=zero_stage,
    )


def train_on(rank: int, ranks: int, plan: Recipe, run: Path, resume: int | None = None) -> dict[str, Any]:
    topology = Topology(rank, ranks, rank, ranks)
    trainer = Trainer(plan, ShardSet(plan.data.shards), run, topology, dist.group.WORLD, torch.device("cpu"))
    frozen = [name for name, p in trainer.engine.module.named_parameters() if not p.requires_grad]
    if resume is not None:
        trainer.engine.load({name: torch.full_like(p, 3) for name, p in trainer.engine.parameters().items()})
        trainer.resume(resume)
    losses = [record.loss for record in trainer.train()]
    state = {name: value.clone() for name, value in trainer.engine.parameters().items()}
    return {"losses": losses, "frozen": frozen, "state": state}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_it_starts_saves_and_resumes(shards: Path, tmp_path: Path, stage: Literal[0, 1, 2, 3]) -> None:
    plan = recipe(shards, stage)
    whole = run_ranks(train_on, 2, plan, tmp_path)
    assert whole[0]["frozen"] == [FROZEN]
    with TensorFile(RunFolder(tmp_path).checkpoint(1) / BACKBONE) as file:
        assert torch.equal(file.read(f"backbone.{FROZEN}"), torch.ones(6))
        assert f"momentum.{FROZEN}" not in file.names and "momentum.features.bias" in file.names
    again = run_ranks(train_on, 2, plan, tmp_path, 1)
    for rank, (first, second) in enumerate(zip(whole, again, strict=True)):
        assert second["losses"] == first["losses"][1:]
        other = {name for name, value in first["state"].items() if not torch.equal(second["state"][name], value)}
        # Batch norm's running statistics are each rank's own in training; a checkpoint has those of rank 0.
        assert not (other if rank == 0 else {name for name in other if "running" not in name})
        assert torch.equal(second["state"][FROZEN], torch.ones(6))
