"""What makes a backbone faster or leaner leaves a run what it is: names, checkpoints, resume, and the losses."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.backbones import Backbone
from pipeline.backbones.iresnet import IResNetBackbone
from pipeline.backbones.sphereface import SphereFaceBackbone
from pipeline.optim.sgd import SGD
from pipeline.recipe.schema import Checkpoint, Data, Recipe
from pipeline.training.engine import Engine
from tests.distributed.ranks import run_ranks
from tests.distributed.trainer import trainer_of
from tests.faces import write_shards

STEPS, SAVED = 4, 2
SIZE = (16, 16)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    height, width = SIZE
    return write_shards(tmp_path_factory.mktemp("set"), identities=5, images=4, height=height, width=width)


def recipe(shards: Path, backbone: Backbone, **changes: Any) -> Recipe:
    return Recipe(
        data=Data(shards=shards, global_batch=8, decode_threads=1),
        backbone=backbone,
        optimizer=SGD(steps=STEPS, learning_rate=0.01),
        checkpoint=Checkpoint(every=SAVED),
        **changes,
    )


def train(rank: int, ranks: int, plan: Recipe, run: Path, resume: int | None = None) -> dict[str, Any]:
    trainer = trainer_of(rank, ranks, plan, run, resume)
    losses = [record.loss for record in trainer.train()]
    return {
        "losses": losses,
        "rows": trainer.head.weight_SD.detach().clone(),
        "backbone": {name: p.detach().clone() for name, p in trainer.engine.parameters().items()},
        "held": trainer.engine.held_bytes,
        "evaluated": trainer.engine.module.eval()(torch.ones(3, 3, *SIZE)).detach(),
    }


def train_and_resume(rank: int, ranks: int, plans: list[Recipe], run: Path) -> list[tuple[dict[str, Any], ...]]:
    """Of each plan a whole run, and its second half from the checkpoint."""
    folders = [run / str(number) for number in range(len(plans))]
    return [
        (train(rank, ranks, plan, folder), train(rank, ranks, plan, folder, SAVED))
        for plan, folder in zip(plans, folders, strict=True)
    ]


def channels_last(rank: int, ranks: int, plans: list[Recipe], run: Path) -> list[tuple[dict[str, Any], ...]]:
    """As `train_and_resume`, with images and weights as on a GPU; all but the first plan."""
    (plain,) = train_and_resume(rank, ranks, plans[:1], run / "plain")
    Engine.channels_last_on = frozenset({"cpu"})
    return [plain, *train_and_resume(rank, ranks, plans, run)]


def compiled(rank: int, ranks: int, plans: list[Recipe], run: Path) -> tuple[int, list[tuple[dict[str, Any], ...]]]:
    """As `train_and_resume`, compiled without a compiler for the machine; and how many graphs were."""
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch.compile = partial(torch.compile, backend=backend)
    runs = train_and_resume(rank, ranks, plans, run)
    return len(graphs), runs


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two runs ended in the same state, bit for bit."""
    ours, theirs = first["backbone"], second["backbone"]
    equal = ours.keys() == theirs.keys() and all(torch.equal(theirs[name], value) for name, value in ours.items())
    return equal and torch.equal(first["rows"], second["rows"]) and torch.equal(first["evaluated"], second["evaluated"])


def test_channels_last_is_a_matter_of_layout(shards: Path, tmp_path: Path) -> None:
    backbone = SphereFaceBackbone(name="sphereface4", embedding_dim=8)
    plans = [recipe(shards, backbone, zero_stage=stage) for stage in (0, 2)]
    for (want, _), *runs in run_ranks(channels_last, 2, plans, tmp_path):
        for whole, resumed in runs:
            assert whole["losses"] == pytest.approx(want["losses"], rel=1e-5)
            assert resumed["losses"] == whole["losses"][SAVED:]
            assert same(whole, resumed)
            assert whole["backbone"].keys() == want["backbone"].keys()
        assert not runs[0][0]["backbone"]["stages.0.0.weight"].is_contiguous()


@pytest.mark.parametrize("stage", [0, 3])
def test_recomputed_blocks_change_no_bit_of_a_run(shards: Path, tmp_path: Path, stage: int) -> None:
    plain = IResNetBackbone(name="iresnet18", embedding_dim=8)
    leaner = plain.model_copy(update={"activation_checkpointing": True})
    plans = [recipe(shards, backbone, zero_stage=stage) for backbone in (plain, leaner)]
    (((want, _), (whole, resumed)),) = run_ranks(train_and_resume, 1, plans, tmp_path)
    assert whole["losses"] == want["losses"]
    assert same(whole, want) and same(whole, resumed)
    # What they hold between steps is the same as well: parameters and momenta, under ZeRO a copy, and buffers twice.
    module = plain.build(SIZE)
    trained = sum(p.nbytes for p in module.parameters() if p.requires_grad)
    frozen = sum(p.nbytes for p in module.parameters()) - trained
    buffers = sum(buffer.nbytes for buffer in module.buffers())
    by_hand = (2 if stage == 0 else 3) * trained + frozen + 2 * buffers
    assert whole["held"] == want["held"] == pytest.approx(by_hand, rel=1e-3)


def test_a_compiled_backbone_trains_the_same_and_keeps_its_names(shards: Path, tmp_path: Path) -> None:
    plain = IResNetBackbone(name="iresnet18", embedding_dim=8)
    plans = [recipe(shards, backbone) for backbone in (plain, plain.model_copy(update={"compile": True}))]
    ((graphs, [(want, _), (whole, resumed)]),) = run_ranks(compiled, 1, plans, tmp_path)
    assert whole["losses"] == pytest.approx(want["losses"], rel=1e-5)
    assert resumed["losses"] == whole["losses"][SAVED:]
    assert same(whole, resumed)
    assert whole["backbone"].keys() == want["backbone"].keys()
    assert graphs == 1, "neither the first step, nor an evaluation, nor another start of the process compiles again"
