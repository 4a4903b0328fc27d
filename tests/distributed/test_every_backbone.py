"""Every backbone starts, saves, resumes and embeds at every ZeRO stage and in every precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from pipeline.backbones import BACKBONES, Backbone
from pipeline.evaluation.embedding.source import How, image_files
from pipeline.evaluation.embedding.trained import load_trained
from pipeline.optim.sgd import SGD
from pipeline.planning.memory import peak
from pipeline.planning.of_recipe import job_of, network_of
from pipeline.recipe.schema import Checkpoint, Data, Recipe
from pipeline.run.checkpoint import BACKBONE
from pipeline.run.folder import RunFolder
from pipeline.run.tensor_file import TensorFile
from pipeline.training.loop import Trainer
from tests import tiny_vit  # noqa: F401 - a backbone by name
from tests.distributed.ranks import run_ranks
from tests.distributed.trainer import trainer_of
from tests.faces import write_shards

SIZE = (16, 16)
# In millions of parameters, of those that are not their family's shallowest. A leg writes, reads and digests 8 bytes of
# each: gigabytes in all for the deeper ones, which are made of the same layers.
LARGEST = 6
STAGES, PRECISIONS = (get_args(Recipe.model_fields[key].annotation) for key in ("zero_stage", "precision"))


def legs(*stages: int) -> list[tuple[int, str]]:
    """Each stage in this order; every visit of one in the next precision."""
    return [(stage, PRECISIONS[stages[:number].count(stage) % len(PRECISIONS)]) for number, stage in enumerate(stages)]


# From each stage to each other once.
EVERY_WAY = legs(0, 1, 0, 2, 0, 3, 1, 2, 1, 3, 2, 3, 0)
CHAINS = {
    "sphereface4": EVERY_WAY,
    "iresnet18": legs(0, 1, 2, 3, 0, 2, 1, 3),
    "vit_t": legs(0, 1, 2, 3, 0, 2, 1, 3),
    "mobilefacenet": legs(0, 1, 2, 3, 0, 2, 1, 3),
    "sphereface10": legs(3, 1),
}
OURS = [name for name in BACKBONES if BACKBONES[name].__module__.startswith("pipeline.")]  # no other test's toys
NAMES = [name for name in OURS if not name.endswith("/*")]
STAND_INS = {"vit_t": "tiny_vit"}  # made of the same layers


def backbone_of(name: str) -> Backbone:
    return BACKBONES[name](name=name, embedding_dim=6)


def recipe(shards: Path, name: str, leg: tuple[int, str], steps: int) -> Recipe:
    stage, precision = leg
    return Recipe(
        data=Data(shards=shards, global_batch=4, decode_threads=1),
        backbone=backbone_of(name),
        optimizer=SGD(steps=steps, learning_rate=0.01),
        checkpoint=Checkpoint(every=1, keep=1),
        zero_stage=stage,  # type: ignore[arg-type]
        precision=precision,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("set"), identities=5, images=2, height=SIZE[0], width=SIZE[1])


def state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """All that a checkpoint holds of this rank, under one name each."""
    state = {name: value.clone() for name, value in trainer.engine.parameters().items()}
    for slot, values in trainer.engine.slots().items():
        state |= {f"{slot} of {name}": value.clone() for name, value in values.items()}
    rows = {f"{slot} of rows": value.clone() for slot, value in trainer.head.slots.items()}
    return state | rows | {"rows": trainer.head.weight_SD.detach().clone()}


def walk(rank: int, ranks: int, shards: Path, name: str, chain: list[tuple[int, str]], run: Path) -> dict[str, Any]:
    """One step of each leg, from what the leg before has saved."""
    before: dict[str, torch.Tensor] = {}
    found: dict[str, Any] = {"losses": [], "other": [], "frozen": []}
    for number, leg in enumerate(chain):
        plan = recipe(shards, name, leg, steps=number + 1)
        trainer = trainer_of(rank, ranks, plan, run)
        found["frozen"] = [key for key, p in trainer.engine.module.named_parameters() if not p.requires_grad]
        if before:
            whole = trainer.engine.parameters()
            trainer.engine.load({key: torch.full_like(value, 3) for key, value in whole.items()})
            trainer.resume(number)
            now = state_of(trainer)
            assert now.keys() == before.keys()
            # Batch norm's running statistics are each rank's own in training; a checkpoint has those of rank 0.
            own = {key for key in now if "running" in key} if rank else set()
            found["other"] += [(leg, key) for key in now.keys() - own if not torch.equal(now[key], before[key])]
        (record,) = trainer.train()
        found["losses"].append(record.loss)
        before = state_of(trainer)
        if rank == 0 and number == 0:
            (run / "recipe.yaml").write_text(plan.to_yaml())
    return {**found, "state": before}


@pytest.mark.parametrize("name", CHAINS)
def test_it_starts_saves_resumes_and_embeds(shards: Path, tmp_path: Path, name: str) -> None:
    results = run_ranks(walk, 2, shards, STAND_INS.get(name, name), CHAINS[name], tmp_path)
    for result in results:
        assert result["other"] == [], "resumed as something else than was saved"
        assert np.isfinite(result["losses"]).all()
        assert len(result["losses"]) == len(CHAINS[name])
        assert result["losses"] == results[0]["losses"]
    trained, state = load_trained(tmp_path, None), results[0]["state"]
    assert trained.step == len(CHAINS[name])
    for key, value in trained.module.state_dict().items():
        assert torch.equal(value, state[key]), key
    with TensorFile(RunFolder(tmp_path).checkpoint(trained.step) / BACKBONE) as file:
        for key in results[0]["frozen"]:  # IResNet holds the scale of its last batch norm at 1
            assert key != "features.weight" or torch.equal(file.read(f"backbone.{key}"), torch.ones(6))
            assert f"momentum.{key}" not in file.names
    files = [f"person00{person}/0000.jpg" for person in range(5)]
    rows = np.concatenate(list(trained.source.features(image_files(shards.parent / "faces", files), How(3, 1))))
    assert rows.shape == (5, 2 * 6)
    assert np.isfinite(rows).all()
    assert (rows.std(axis=0) > 0).all(), "every image has the same features"


def test_shallowest_and_small_ones_are_trained_here_the_shallowest_in_every_way() -> None:
    shallowest = {names[0] for names in BACKBONES.by_section().values()} & set(NAMES)
    assert {name for name in NAMES if millions_of_parameters(name) < LARGEST} | shallowest == CHAINS.keys()
    for name in shallowest:
        assert set(CHAINS[name]) == {(stage, precision) for stage in STAGES for precision in PRECISIONS}


def millions_of_parameters(name: str) -> float:
    with torch.device("meta"):
        return sum(p.numel() for p in backbone_of(name).build(SIZE).parameters()) / 10**6


@pytest.mark.parametrize("name", NAMES)
def test_it_is_planned(shards: Path, name: str) -> None:
    for stage in STAGES:
        plan = recipe(shards, name, (stage, "bfloat16"), steps=1)
        network = network_of(plan.backbone, SIZE, bf16=True)
        assert min(network.parameters, network.activation_bytes, network.macs) > 0
        assert peak(job_of(plan, 1000, 2), network)[1] > 4 * network.parameters
