"""Synchronised batch norms on 1, 2 and 3 ranks against one process that holds all images; whole steps of IResNet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pipeline.backbones import BACKBONES, Backbone
from pipeline.backbones.batch_norm import synchronise
from pipeline.optim.sgd import SGD
from pipeline.planning import traffic
from pipeline.planning.of_recipe import job_of, network_of
from pipeline.recipe.schema import Checkpoint, Data, Recipe
from tests.distributed.ranks import run_ranks
from tests.distributed.trainer import trainer_of
from tests.faces import write_shards

IMAGES = 7
SHARES = {1: (7,), 2: (5, 2), 3: (4, 2, 1)}


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(), nn.Flatten(), nn.BatchNorm1d(36)).double()


def batches() -> tuple[torch.Tensor, torch.Tensor]:
    """Two micro-batches of images, and the gradients of their outputs."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(2, IMAGES, 3, 5, 5, generator=generator, dtype=torch.float64) * 3 + 5
    return images, torch.randn(2, IMAGES, 36, generator=generator, dtype=torch.float64)


def passes(module: nn.Module, share: slice) -> dict[str, Any]:
    """Forward and backward of both micro-batches, on a share of their images."""
    outputs, grads = [], []
    for images, weights in zip(*batches(), strict=True):
        x = images[share].clone().requires_grad_()
        output = module(x)
        (output * weights[share]).sum().backward()
        outputs.append(output.detach())
        grads.append(x.grad)
    parameters = {name: p.grad for name, p in module.named_parameters()}
    return {"outputs": outputs, "grads": grads, "parameters": parameters, "buffers": dict(module.named_buffers())}


def on_a_rank(rank: int, ranks: int) -> dict[str, Any]:
    module, start = network(), sum(SHARES[ranks][:rank])
    synchronise(module, dist.group.WORLD)
    found = passes(module, slice(start, start + SHARES[ranks][rank]))
    module.eval()
    if rank == 0:  # in evaluation there is no collective that would wait for the others
        module(batches()[0][0])
    return found


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_uneven_shares_are_one_batch(ranks: int) -> None:
    want, got = passes(network(), slice(None)), run_ranks(on_a_rank, ranks)
    for part in ("outputs", "grads"):
        for number in range(2):
            whole = torch.cat([one[part][number] for one in got])
            torch.testing.assert_close(whole, want[part][number], rtol=1e-10, atol=1e-10)
    for name, grad in want["parameters"].items():
        summed = sum(one["parameters"][name] for one in got)
        torch.testing.assert_close(summed, grad, rtol=1e-10, atol=1e-9)
    for name, value in want["buffers"].items():
        torch.testing.assert_close(got[0]["buffers"][name], value, rtol=1e-12, atol=1e-12)
        assert all(torch.equal(one["buffers"][name], got[0]["buffers"][name]) for one in got)


@BACKBONES.add("toy_of_batch_norm")
class ToyBackbone(Backbone):
    """Small, with a block that can be computed again."""

    def build(self, image_size: tuple[int, int]) -> nn.Module:  # noqa: ARG002 - of 16 × 16
        """See `blocks`."""
        block = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.PReLU())
        return nn.Sequential(block, nn.Flatten(), nn.Linear(64, self.embedding_dim), nn.BatchNorm1d(self.embedding_dim))

    def blocks(self, network: nn.Module) -> Sequence[nn.Module]:
        """The first part."""
        return [next(network.children())]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("set"), identities=6, images=4, height=16, width=16)


def recipe(shards: Path, name: str, backbone: dict[str, Any], **changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "data": Data(shards=shards, global_batch=12, decode_threads=1),
        "backbone": BACKBONES.parse({"name": name, "embedding_dim": 6, **backbone}),
        "optimizer": SGD(steps=1, learning_rate=0.01),
        "checkpoint": Checkpoint(every=9),
    }
    return Recipe(**{**fields, **changes})


def one_step(rank: int, ranks: int, plans: list[Recipe], run: Path) -> list[dict[str, Any]]:
    """One step of each recipe from the start of its own run."""
    found = []
    for number, plan in enumerate(plans):
        trainer = trainer_of(rank, ranks, plan, run / str(number))
        (record,) = trainer.train()
        sent = record.values["communication_bytes_total"]
        assert isinstance(sent, dict)
        state = {name: value.clone() for name, value in trainer.engine.parameters().items()}
        norm = record.values["gradient_norm"]
        found.append({"loss": record.loss, "norm": norm, "sent": sent["backbone"], "state": state})
    return found


def assert_same_step(want: dict[str, Any], got: list[dict[str, Any]]) -> None:
    """`got` on several ranks is `want` on one: the loss, and what the gradient made of the parameters."""
    first, *others = got
    assert first["loss"] == pytest.approx(want["loss"], rel=1e-6)
    assert first["norm"] == pytest.approx(want["norm"], rel=1e-4)
    for name, value in want["state"].items():
        torch.testing.assert_close(first["state"][name], value, rtol=1e-4, atol=1e-5, msg=name)
        assert all(torch.equal(other["state"][name], first["state"][name]) for other in others), name


def test_any_number_of_ranks_takes_the_same_step(shards: Path, tmp_path: Path) -> None:
    synchronised = {"batch_norm": "synchronised"}
    in_parts = Data(shards=shards, global_batch=12, accumulation=2, decode_threads=1)
    plans = [
        recipe(shards, "toy_of_batch_norm", synchronised, zero_stage=3),
        recipe(shards, "toy_of_batch_norm", synchronised, data=in_parts),
        recipe(shards, "toy_of_batch_norm", {**synchronised, "activation_checkpointing": True}),
    ]
    results = {ranks: run_ranks(one_step, ranks, plans, tmp_path / str(ranks)) for ranks in (1, 2, 3)}
    for ranks in (2, 3):
        for number, plan in enumerate(plans):
            got = [one[number] for one in results[ranks]]
            assert_same_step(results[1][0][number], got)
            sent = traffic(job_of(plan, 6, ranks), network_of(plan.backbone, (16, 16), bf16=False))
            planned = sum(size for name, size in sent.items() if "network" in name or "norms" in name)
            assert got[0]["sent"] == pytest.approx(planned, abs=12)


def test_iresnet_takes_the_same_step_if_synchronised_and_else_another(shards: Path, tmp_path: Path) -> None:
    plans = [recipe(shards, "iresnet18", {"batch_norm": how}) for how in ("synchronised", "local")]
    one, two = (run_ranks(one_step, ranks, plans, tmp_path / str(ranks)) for ranks in (1, 2))
    assert_same_step(one[0][0], [both[0] for both in two])
    # on one rank they are its own
    assert one[0][0]["loss"] == pytest.approx(one[0][1]["loss"], rel=1e-6)
    assert two[0][1]["loss"] != pytest.approx(one[0][1]["loss"], rel=1e-3), "the control does not differ"
