"""An optimizer from outside: two slots and a count, in one class. It trains, is saved, resumed and planned for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch

from pipeline import planning
from pipeline.backbones.sphereface import SphereFaceBackbone
from pipeline.head.margins.softmax import Softmax
from pipeline.head.rows import initial_rows
from pipeline.optim import OPTIMIZERS, Optimizer, Slot
from pipeline.optim.sgd import SGD
from pipeline.planning.of_recipe import job_of, network_of
from pipeline.reading.dali import Decoder
from pipeline.reading.order import Order
from pipeline.reading.reader import Reader
from pipeline.reading.tars import ShardSet
from pipeline.recipe.file import load_recipe
from pipeline.recipe.schema import Checkpoint, Data, Head, Recipe
from pipeline.run.checkpoint import CheckpointError
from tests.distributed.ranks import run_ranks
from tests.distributed.trainer import trainer_of
from tests.faces import ROOT, write_shards

STEPS, SAVED = 8, 4
BETAS, EPS, DECAY, RATE = (0.9, 0.99), 1e-2, 5e-4, 0.01
Stage = Literal[0, 1, 2, 3]


@OPTIMIZERS.add("toy_adam")
class ToyAdam(Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1) with weight decay in the gradient."""

    slots: ClassVar = (Slot("mean", "exp_avg"), Slot("square", "exp_avg_sq"), Slot("count", "step", per_number=False))

    name: str = "toy_adam"
    eps: float = EPS

    def update_rows(
        self, weight_nD: torch.Tensor, slots: Mapping[str, torch.Tensor], grad_nD: torch.Tensor, learning_rate: float
    ) -> None:
        grad_nD.add_(weight_nD, alpha=self.weight_decay)
        count_n1 = slots["count"].add_(1)[:, None]
        mean_nD = slots["mean"].mul_(BETAS[0]).add_(grad_nD, alpha=1 - BETAS[0])
        square_nD = slots["square"].mul_(BETAS[1]).addcmul_(grad_nD, grad_nD, value=1 - BETAS[1])
        size_nD = (square_nD / (1 - BETAS[1] ** count_n1)).sqrt() + self.eps
        weight_nD.sub_(learning_rate * mean_nD / (1 - BETAS[0] ** count_n1) / size_nD)

    def for_backbone(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.Adam(groups, lr=self.learning_rate, betas=BETAS, eps=self.eps)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("set"), identities=7, images=6)


def recipe(shards: Path, zero_stage: Stage = 0, optimizer: Optimizer | None = None) -> Recipe:
    return Recipe(
        seed=3,
        data=Data(shards=shards, global_batch=12, streams=2, decode_threads=1),
        backbone=SphereFaceBackbone(name="sphereface4", embedding_dim=8),
        head=Head(margin=Softmax(name="softmax")),
        optimizer=optimizer or ToyAdam(steps=STEPS, learning_rate=RATE, weight_decay=DECAY),
        checkpoint=Checkpoint(every=SAVED),
        zero_stage=zero_stage,
    )


def train_on(rank: int, ranks: int, plan: Recipe, run: Path, resume: int | None = None) -> dict[str, Any]:
    trainer = trainer_of(rank, ranks, plan, run, resume)
    losses = [record.loss for record in trainer.train()]
    slots: dict[str, torch.Tensor] = {}
    for slot, of_parameters in trainer.engine.slots().items():
        slots |= {f"{slot} of {name}": value.clone() for name, value in of_parameters.items()}
    return {
        "losses": losses,
        "rows": trainer.head.weight_SD.detach().clone(),
        "row slots": {name: slot.clone() for name, slot in trainer.head.slots.items()},
        "backbone": {name: p.clone() for name, p in trainer.engine.parameters().items()},
        "slots": slots,
    }


@pytest.fixture(scope="module")
def dense(shards: Path) -> dict[str, Any]:
    """The same run in float64 by the paper: all rows and logits at once, moments and their correction written out."""
    plan = recipe(shards)
    sample_set = ShardSet(shards)
    torch.manual_seed(plan.seed)
    backbone = SphereFaceBackbone(name="sphereface4", embedding_dim=8).build((32, 32)).double()
    rows = initial_rows(range(7), 8, plan.seed).double().requires_grad_()
    named = {**dict(backbone.named_parameters()), "rows": rows}
    mean = {name: torch.zeros_like(p) for name, p in named.items()}
    square = {name: torch.zeros_like(p) for name, p in named.items()}
    order = Order(sample_set.samples_per_tar, plan.seed, 12, 2, plan.data.window)
    reader = Reader(sample_set, order, Decoder(12, 32, 32, torch.device("cpu"), 1, plan.data.augment))
    losses = []
    for step in range(1, STEPS + 1):
        batch = next(reader)
        loss = torch.nn.functional.cross_entropy(backbone(batch.images_BCHW.double()) @ rows.T, batch.labels_B)
        losses.append(loss.item())
        grads = torch.autograd.grad(loss, list(named.values()))
        with torch.no_grad():
            for (name, p), grad in zip(named.items(), grads, strict=True):
                decayed = grad + DECAY * p
                mean[name] = BETAS[0] * mean[name] + (1 - BETAS[0]) * decayed
                square[name] = BETAS[1] * square[name] + (1 - BETAS[1]) * decayed**2
                corrected = (square[name] / (1 - BETAS[1] ** step)).sqrt()
                p.sub_(RATE * (mean[name] / (1 - BETAS[0] ** step)) / (corrected + EPS))
    reader.close()
    return {"losses": losses, "rows": rows.detach(), "backbone": dict(backbone.named_parameters())}


@dataclass(frozen=True)
class Trained:
    """A run to its end, and what each of its ranks then holds."""

    ranks: int
    plan: Recipe
    run: Path
    results: list[dict[str, Any]]


@pytest.fixture(scope="module", params=[(1, 0), (2, 1), (3, 2), (2, 3)], ids=str)
def trained(request: pytest.FixtureRequest, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    ranks, stage = request.param
    plan, run = recipe(shards, stage), tmp_path_factory.mktemp("run")
    return Trained(ranks, plan, run, run_ranks(train_on, ranks, plan, run))


def test_a_run_equals_the_dense_float64_run(dense: dict[str, Any], trained: Trained) -> None:
    for result in trained.results:
        assert result["losses"] == pytest.approx(dense["losses"], rel=1e-4)
        for name, want in dense["backbone"].items():
            torch.testing.assert_close(result["backbone"][name].double(), want.detach(), rtol=1e-3, atol=1e-5)
        assert {float(v) for name, v in result["slots"].items() if name.startswith("count")} == {float(STEPS)}
        assert result["row slots"]["count"].tolist() == [float(STEPS)] * len(result["rows"])
    rows = torch.cat([result["rows"] for result in trained.results]).double()
    torch.testing.assert_close(rows, dense["rows"], rtol=1e-3, atol=1e-5)
    assert dense["losses"][-1] < dense["losses"][0], "the reference itself did not learn"


def test_resume_is_bitwise_on_the_same_ranks(trained: Trained) -> None:
    again = run_ranks(train_on, trained.ranks, trained.plan, trained.run, SAVED)
    for first, second in zip(trained.results, again, strict=True):
        assert second["losses"] == first["losses"][SAVED:]
        assert torch.equal(second["rows"], first["rows"])
        for part in ("row slots", "backbone", "slots"):
            assert first[part] and second[part].keys() == first[part].keys()
            assert all(torch.equal(second[part][name], value) for name, value in first[part].items()), part


def test_resume_on_other_ranks_and_zero_stages(shards: Path, trained: Trained) -> None:
    elsewhere: tuple[int, Stage] = (2, 3) if trained.ranks == 1 else (1, 0)
    again = run_ranks(train_on, elsewhere[0], recipe(shards, elsewhere[1]), trained.run, SAVED)
    assert again[0]["losses"] == pytest.approx(trained.results[0]["losses"][SAVED:], rel=1e-4)


def test_the_planner_counts_what_the_ranks_hold(trained: Trained) -> None:
    stage, ranks = trained.plan.zero_stage, trained.ranks
    job, network = job_of(trained.plan, 7, ranks), network_of(trained.plan.backbone, (32, 32), False)
    alive = planning.memory(job, network)["head"]
    fullest = max(sum(slot.nbytes for slot in result["row slots"].values()) for result in trained.results)
    assert alive["classifier slots"] == fullest == 4 * -(-7 // ranks) * (2 * 8 + 1)
    whole = sum(slot.nbytes for slot in trained.results[0]["slots"].values() if slot.dim())
    assert whole == 2 * 4 * network.parameters
    assert alive["network slots"] == (whole if stage == 0 else 2 * 4 * -(-network.parameters // ranks))
    assert planning.checkpoint_bytes(job, network) == 4 * 7 * (3 * 8 + 1) + 3 * 4 * network.parameters


def refused(rank: int, ranks: int, plan: Recipe, run: Path) -> str:
    try:
        train_on(rank, ranks, plan, run, SAVED)
    except CheckpointError as error:
        return str(error)
    return "resumed"


def test_another_optimizer_does_not_resume_it(shards: Path, trained: Trained) -> None:
    (message,) = run_ranks(refused, 1, recipe(shards, optimizer=SGD(steps=STEPS, learning_rate=RATE)), trained.run)
    assert "slots: got ['momentum'], wanted ['mean', 'square', 'count'] as saved: another optimizer" in message


def test_a_recipe_names_it(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    demo = (ROOT / "stages" / "recipes" / "demo.yaml").read_text()
    file.write_text(demo)
    loaded = load_recipe(file, ["optimizer={name: toy_adam, steps: 3, learning_rate: 0.1, eps: 0.5}"])
    assert loaded.optimizer == ToyAdam(steps=3, learning_rate=0.1, eps=0.5)
    file.write_text(loaded.to_yaml())
    assert load_recipe(file) == loaded
