"""The head in others' trainers: the scripts of docs/head.md on two ranks are our own training, to 1e-6."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.backbones import BACKBONES, Backbone
from pipeline.head import ShardedHead
from pipeline.head.margins import Margin
from pipeline.head.margins.a_softmax import ASoftmax
from pipeline.head.margins.arcface import ArcFace
from pipeline.head.rows import initial_rows
from pipeline.optim.sgd import SGD
from pipeline.reading.reader import Batch
from pipeline.recipe.schema import Data, Head, Recipe
from pipeline.training.engine import Engine
from pipeline.training.step import Stepper
from tests.distributed.ranks import run_ranks
from tests.faces import ROOT
from tests.ports import free_port

CLASSES, DIM, STEPS, GLOBAL_BATCH = 21, 32, 4, 24
SCRIPTS = dict(
    re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?```python\n(.*?)```", (ROOT / "docs/head.md").read_text(), re.M | re.S)
)
SGD_OF_PAGE = SGD(steps=STEPS, learning_rate=0.02)
OF_ARCFACE = SGD(steps=STEPS, learning_rate=0.02, power=1, clip_norm=5)
OURS: dict[str, tuple[Margin, SGD]] = {
    "DDP": (ASoftmax(), SGD_OF_PAGE),
    "FSDP2": (ASoftmax(), SGD_OF_PAGE),
    "arcface_torch": (ArcFace(detached=True), OF_ARCFACE),
    "Lightning": (ASoftmax(), SGD_OF_PAGE),
}
SAVING = "Saving, and another number of ranks"


@BACKBONES.add("toy_of_the_page")
class PageBackbone(Backbone):
    """The network of the page's scripts."""

    def build(self, image_size: tuple[int, int]) -> nn.Module:  # noqa: ARG002 - that of the page
        """Images [B, 3, 16, 16] to embeddings [B, 32]."""
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.PReLU(8), nn.Flatten(), nn.Linear(8 * 7 * 7, self.embedding_dim)
        )


def drawn() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Network, images and labels as the scripts draw them."""
    torch.manual_seed(0)
    network = PageBackbone(name="toy_of_the_page", embedding_dim=DIM).build((16, 16))
    return network, torch.randn(STEPS * GLOBAL_BATCH, 3, 16, 16), torch.arange(STEPS * GLOBAL_BATCH) % CLASSES


def share(step: int, rank: int, ranks: int) -> slice:
    """Of `DistributedSampler`."""
    return slice(step * GLOBAL_BATCH + rank, (step + 1) * GLOBAL_BATCH, ranks)


def our_training(rank: int, ranks: int, margin: Margin, optimizer: SGD) -> dict[str, Any]:
    recipe = Recipe(
        data=Data(shards=Path("none"), global_batch=GLOBAL_BATCH),
        backbone=PageBackbone(name="toy_of_the_page", embedding_dim=DIM),
        head=Head(margin=margin),
        optimizer=optimizer,
    )
    network, images, labels = drawn()
    engine = Engine(network, recipe, dist.group.WORLD)
    head = ShardedHead(CLASSES, DIM, margin, dist.group.WORLD, optimizer=optimizer)
    stepper, losses = Stepper(engine, head, recipe, dist.group.WORLD, None, torch.device("cpu")), []
    for step in range(STEPS):
        mine = share(step, rank, ranks)
        batch = Batch(step, images[mine], labels[mine], np.arange(len(labels))[mine])
        outcome = stepper.take(
            batch,
            step,
            lambda_=recipe.head.lambda_at(step),
            learning_rate=optimizer.learning_rate_at(step, GLOBAL_BATCH),
            spike_above=math.inf,
            stop_asked=lambda: False,
        )
        losses.append(outcome.loss)
    return found(losses, engine.module.parameters(), head)


def found(losses: list[float], weights: Iterable[torch.Tensor], head: ShardedHead) -> dict[str, Any]:
    network = torch.cat([p.detach().flatten() for p in weights])
    return {"losses": losses, "network": network, "rows": head.weight_SD.detach().clone(), **head.slots}


class Recognizer(nn.Module):
    """Network and head in one, as many write it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.head = ShardedHead(CLASSES, DIM, ASoftmax(), optimizer=SGD_OF_PAGE)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.head(self.network(images), labels).loss


def inside_of_ddp(rank: int, ranks: int) -> dict[str, Any]:
    """DDP around both: it sends rank 0's parameters and buffers at its start."""
    network, images, labels = drawn()
    model = Recognizer(network)
    wrapped, losses = DistributedDataParallel(model), []
    assert torch.equal(model.head.weight_SD, initial_rows(model.head.classes, DIM, seed=0))
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    for step in range(STEPS):
        mine = share(step, rank, ranks)
        loss = wrapped(images[mine], labels[mine])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.head.update()
        losses.append(loss.item())
    return found(losses, network.parameters(), model.head)


def refusals(rank: int) -> dict[str, str]:
    """What is refused on every rank, where another could hang."""
    head = ShardedHead(CLASSES, DIM, ASoftmax())
    wrong = torch.tensor([0, CLASSES if rank else 1])
    state = head.state_dict()
    other = state | {"classes": torch.tensor([0, 11, CLASSES] if rank else [11, 21, CLASSES])}
    calls = {
        "labels": lambda: head(torch.zeros(2, DIM), wrong, step=0),
        "rows": lambda: head.load_state_dict(other),
    }
    words = {}
    for name, call in calls.items():
        with pytest.raises((ValueError, RuntimeError)) as refused:
            call()
        words[name] = str(refused.value)
    return words


def run_script(name: str) -> dict[str, Any]:
    """What a script of the page leaves."""
    script: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(SCRIPTS[name], f"docs/head.md, {name}", "exec"), script)
    return script


def resumed_by_lightning(script: dict[str, Any]) -> torch.Tensor:
    """Rows of a new model that was given the checkpoint."""
    model = script["Recognizer"]()
    keys = {**script["settings"], "enable_progress_bar": False}
    trainer = script["lightning"].Trainer(max_epochs=1, devices=2, strategy="ddp", **keys)
    trainer.fit(model, ckpt_path="lightning.ckpt")
    return model.head.weight_SD.detach().clone()


def on_ranks(rank: int, ranks: int, folder: Path, ports: dict[str, int]) -> dict[str, Any]:
    os.chdir(folder)
    results: dict[str, Any] = {f"ours, {name}": our_training(rank, ranks, *choice) for name, choice in OURS.items()}
    results["inside of DDP"], results["refusals"] = inside_of_ddp(rank, ranks), refusals(rank)
    dist.barrier()
    dist.destroy_process_group()
    early = ShardedHead(CLASSES, DIM, ASoftmax())
    # What torchrun says.
    os.environ.update(MASTER_ADDR="127.0.0.1", LOCAL_WORLD_SIZE=str(ranks), GROUP_RANK="0", TORCHELASTIC_RUN_ID="none")
    for name, port in ports.items():
        os.environ["MASTER_PORT"] = str(port)
        script = run_script(name)
        weights = script["weights"].values() if name == "FSDP2" else script["network"].parameters()
        results[name] = found(script["losses"], weights, script["head"])
        if name == "Lightning":
            results["resumed"] = resumed_by_lightning(script)
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/end", ranks), rank=rank, world_size=ranks)
    dist.barrier()  # both have written
    head = run_script(SAVING)["head"]
    results["one rank"] = {"rows": head.weight_SD.detach(), **head.slots, "step": torch.tensor(head.step)}
    with pytest.raises(RuntimeError, match="a head that was made before the process group"):
        early(torch.zeros(2, DIM), torch.zeros(2, dtype=torch.int64))
    dist.barrier()
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """One start of two ranks runs all that this file asks."""
    names = [name for name in OURS if name != "Lightning" or find_spec("lightning")]
    return run_ranks(on_ranks, 2, tmp_path_factory.mktemp("scripts"), {name: free_port() for name in names})


def same(result: dict[str, Any], ours: dict[str, Any]) -> None:
    assert result["losses"] == pytest.approx(ours["losses"], rel=1e-6)
    for name in ("network", "rows"):
        torch.testing.assert_close(result[name], ours[name], rtol=0, atol=1e-6)


def test_every_script_of_the_page_is_here() -> None:
    assert SCRIPTS.keys() == {*OURS, SAVING}


@pytest.mark.parametrize("name", OURS)
def test_a_script_of_the_page_is_our_own_training(name: str, results: list[dict[str, Any]]) -> None:
    if name == "Lightning":
        pytest.importorskip("lightning")
    for result in results:
        same(result[name], result[f"ours, {name}"])
    first = results[0][name]["losses"]
    assert results[1][name]["losses"] == pytest.approx(first, rel=1e-6), "each rank has the loss of all"
    assert first[-1] != first[0]
    if name != "arcface_torch":  # whose rows are moved by an optimizer of torch's
        momenta = [torch.cat([result[key]["momentum"] for result in results]) for key in (name, f"ours, {name}")]
        torch.testing.assert_close(*momenta, rtol=0, atol=1e-6)


def test_a_head_inside_of_ddp_keeps_its_own_rows(results: list[dict[str, Any]]) -> None:
    for result in results:
        same(result["inside of DDP"], result["ours, DDP"])
    assert [len(result["inside of DDP"]["rows"]) for result in results] == [11, 10]


def test_the_states_of_two_ranks_fit_one(results: list[dict[str, Any]]) -> None:
    for name in ("rows", "momentum"):
        whole = torch.cat([result["DDP"][name] for result in results])
        assert all(torch.equal(result["one rank"][name], whole) for result in results)
    assert int(results[0]["one rank"]["step"]) == STEPS


def test_lightning_resumes_every_ranks_rows(results: list[dict[str, Any]]) -> None:
    pytest.importorskip("lightning")
    assert all(torch.equal(result["resumed"], result["Lightning"]["rows"]) for result in results)


def test_what_is_refused_is_refused_on_every_rank(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert result["refusals"]["labels"] == "labels: got 21, wanted numbers below 21 classes, or -1"
    assert "classes: got 11 to 20 of 21, wanted 0 to 10 of 21" in results[0]["refusals"]["rows"]
    assert "pipeline.head.of_classes" in results[1]["refusals"]["rows"]
