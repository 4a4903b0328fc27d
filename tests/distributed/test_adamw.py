"""AdamW on backbone and rows: a run, saved and resumed on other ranks and ZeRO stages, is the algorithm in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import planning
from pipeline.backbones.sphereface import SphereFaceBackbone
from pipeline.head.rows import initial_rows
from pipeline.optim.adamw import AdamW
from pipeline.planning.of_recipe import job_of, network_of
from pipeline.reading.dali import Decoder
from pipeline.reading.order import Order
from pipeline.reading.reader import Reader
from pipeline.reading.tars import ShardSet
from pipeline.recipe.schema import Recipe
from tests.distributed.ranks import run_ranks
from tests.distributed.test_optimizer import SAVED, STEPS, Stage, train_on
from tests.distributed.test_optimizer import recipe as recipe_of
from tests.faces import write_shards

DECAY, RATE = 0.3, 0.01
# A gradient near 0 keeps its sign through rounding only if ε is larger.
ADAMW = AdamW(steps=STEPS, learning_rate=RATE, weight_decay=DECAY, bias_weight_decay=0, beta2=0.99, eps=1e-2)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("set"), identities=7, images=6)


def recipe(shards: Path, zero_stage: Stage, **head: Any) -> Recipe:
    plain = recipe_of(shards, zero_stage, ADAMW)
    return plain.model_copy(update={"head": plain.head.model_copy(update=head)})


@pytest.fixture(scope="module")
def dense(shards: Path) -> dict[str, Any]:
    """All rows and logits at once, Loshchilov and Hutter's algorithm 2 written out; biases do not decay."""
    plan, sample_set = recipe(shards, 0), ShardSet(shards)
    torch.manual_seed(plan.seed)
    backbone = SphereFaceBackbone(name="sphereface4", embedding_dim=8).build((32, 32)).double()
    rows = initial_rows(range(7), 8, plan.seed).double().requires_grad_()
    named = {**dict(backbone.named_parameters()), "rows": rows}
    mean, square = ({name: torch.zeros_like(p) for name, p in named.items()} for _ in range(2))
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
                mean[name] = 0.9 * mean[name] + 0.1 * grad
                square[name] = 0.99 * square[name] + 0.01 * grad**2
                size = (square[name] / (1 - 0.99**step)).sqrt() + 1e-2
                decay = 0 if name.endswith("bias") else DECAY
                p.sub_(RATE * (mean[name] / (1 - 0.9**step) / size + decay * p))
    reader.close()
    return {"losses": losses, "rows": rows.detach(), "backbone": dict(backbone.named_parameters())}


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Two ranks that share the moments of the backbone."""
    run = tmp_path_factory.mktemp("run")
    return run, run_ranks(train_on, 2, recipe(shards, 1), run)


def compare(results: list[dict[str, Any]], dense: dict[str, Any], first: int = 0) -> None:
    for result in results:
        assert result["losses"] == pytest.approx(dense["losses"][first:], rel=1e-4)
        for name, want in dense["backbone"].items():
            # as a whole: a single weight whose gradient is all rounding may go another way
            assert (result["backbone"][name] - want.detach()).norm() < 1e-4 * want.norm() + 1e-5, name
        assert result["row slots"]["count"].tolist() == [float(STEPS)] * len(result["rows"])
    rows = torch.cat([result["rows"] for result in results])
    assert (rows - dense["rows"]).norm() < 1e-4 * dense["rows"].norm()


def test_a_run_is_the_algorithm_in_float64(dense: dict[str, Any], trained: tuple[Path, list[dict[str, Any]]]) -> None:
    compare(trained[1], dense)
    assert dense["losses"][-1] < dense["losses"][0] / 2, "the reference itself did not learn"


@pytest.mark.parametrize(("ranks", "zero_stage", "fused"), [(1, 0, True), (3, 2, False)])
def test_it_resumes_on_other_ranks_and_zero_stages_with_rows_fused_or_not(
    shards: Path,
    dense: dict[str, Any],
    trained: tuple[Path, list[dict[str, Any]]],
    ranks: int,
    zero_stage: Stage,
    fused: bool,
) -> None:
    plan = recipe(shards, zero_stage, fused_update=fused)
    compare(run_ranks(train_on, ranks, plan, trained[0], SAVED), dense, SAVED)


def test_the_planner_counts_two_moments_and_a_count(shards: Path, trained: tuple[Path, list[dict[str, Any]]]) -> None:
    plan = recipe(shards, 1)
    job, network = job_of(plan, 7, 2), network_of(plan.backbone, (32, 32), False)
    held = [sum(slot.nbytes for slot in result["row slots"].values()) for result in trained[1]]
    assert planning.memory(job, network)["head"]["classifier slots"] == max(held) == 4 * 4 * (2 * 8 + 1)
    saved = sum(file.stat().st_size for file in (trained[0] / "checkpoints" / "step-00000008").glob("*.safetensors"))
    assert planning.checkpoint_bytes(job, network) == pytest.approx(saved, abs=2**14)
