"""A backbone's forward, backward and update on a GPU, alone: against its floor and against arcface_torch's.

Ours goes through the engine as training does (DeepSpeed, autocast, memory format and all), from the batches that the
reader gives. The floor is the arithmetic: six operations a multiply-add, at the rate that this card reaches on a large
product of the same type. Beside it the same network in a bare loop, as a user of PyTorch writes it (channels_last,
autocast, torch's SGD), and arcface_torch's iresnet50 for ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from cluster.ranks.collectives import Group
from cluster.ranks.topology import Topology
from pipeline.backbones import BACKBONES
from pipeline.backbones.size import count_macs
from pipeline.optim.sgd import SGD
from pipeline.reading.tars import ShardSet
from pipeline.recipe.schema import Data, Head, Log, Recipe
from pipeline.training.loop import Trainer
from tests.benchmarks.gpu import arcface_torch
from tests.benchmarks.gpu.head import ARCFACE
from tests.benchmarks.gpu.timing import Row, free, seconds
from tests.benchmarks.shards import make_shards_of


@dataclass(frozen=True)
class Case:
    """A backbone, its images and its type; and the blocks of the peer's network, for a dry run of it."""

    name: str
    height: int = 112
    width: int = 112
    batch: int = 256
    precision: str = "bfloat16"
    dim: int = 512
    peer_blocks: tuple[int, ...] = arcface_torch.BLOCKS

    def __str__(self) -> str:
        return f"{self.name} {self.height}×{self.width} {self.precision} B={self.batch}"

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return BACKBONES[self.name](name=self.name, embedding_dim=self.dim).build((self.height, self.width))


CASES = (
    Case("iresnet50"),
    Case("sphereface20", width=96),
    Case("sphereface20", width=96, precision="float32"),
    Case("sphereface64", width=96),
)


def recipe_of(case: Case, shards: Path) -> Recipe:
    """As the recipes for many identities are, with arcface_torch's margin, momentum and decay."""
    return Recipe(
        precision="bfloat16" if case.precision == "bfloat16" else "float32",
        data=Data(shards=shards, global_batch=case.batch, decode_threads=2),
        backbone=BACKBONES[case.name](name=case.name, embedding_dim=case.dim),
        head=Head(margin=ARCFACE, fused_update=True),
        optimizer=SGD(steps=10**6, learning_rate=0.02, weight_decay=arcface_torch.WEIGHT_DECAY),
        log=Log(metrics_port=None),
    )


def trainer_of(case: Case, shards: Path, run: Path, device: torch.device, group: Group) -> Trainer:
    """A trainer in this process. The group lasts as long as that: DeepSpeed keeps groups that it has seen."""
    run.mkdir(parents=True)
    return Trainer(recipe_of(case, shards), ShardSet(shards), run, Topology(), group, device)


@contextmanager
def deterministic(asked: bool) -> Iterator[None]:
    """Repeatable kernels, as a recipe asks for by default."""
    torch.use_deterministic_algorithms(asked, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def engine_step(trainer: Trainer, images: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        embeddings = trainer.engine.embed(images)
        trainer.engine.backward(embeddings, torch.ones_like(embeddings))
        trainer.engine.step(0.02)

    return run


def bare_step(case: Case, images: torch.Tensor) -> Callable[[], None]:
    """The same network without us."""
    backbone = case.build().to(images.device)
    backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # in place, which its stubs do not know
    images = images.contiguous(memory_format=torch.channels_last)
    sgd = torch.optim.SGD((p for p in backbone.parameters() if p.requires_grad), 0.02, 0.9, weight_decay=5e-4)

    def run() -> None:
        with torch.autocast(images.device.type, case.dtype, enabled=case.dtype != torch.float32):
            embeddings = backbone(images)
        embeddings.sum().backward()
        sgd.step()
        sgd.zero_grad()

    return run


def peer_of(case: Case, device: torch.device) -> nn.Module:
    return arcface_torch.IResNet50(case.dim, (case.height, case.width), case.peer_blocks).to(device)


def peer_step(case: Case, images: torch.Tensor) -> Callable[[], float]:
    return arcface_torch.training_step(peer_of(case, images.device), images, lambda embeddings: embeddings.sum())


def flops_per_second(dtype: torch.dtype, device: torch.device, rounds: int, side: int = 8192) -> float:
    """Of one large product: what the card can do, TF32 for float32."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        return 2 * side**3 / seconds(lambda: a @ b, device, rounds)
    finally:
        torch.set_float32_matmul_precision(before)


def measure(
    folder: Path,
    device: torch.device,
    group: Group,
    cases: tuple[Case, ...] = CASES,
    rounds: int = 10,
    side: int = 8192,
) -> list[Row]:
    """A row for each contestant and case: milliseconds, images a second, ratios."""
    rows: list[Row] = []
    for number, case in enumerate(cases):
        shards = make_shards_of(folder / f"set-{number}", case.batch, 1, case.height, case.width)
        floor = 6 * case.batch * count_macs(case.build(), (case.height, case.width))
        found = {"arithmetic alone": floor / flops_per_second(case.dtype, device, rounds, side)}
        for name, asked in (("spherescale", False), ("spherescale, deterministic", True)):
            trainer = trainer_of(case, shards, folder / f"run-{number}-{asked}", device, group)
            reader = trainer.reader()
            images = next(reader).images_BCHW
            reader.close()
            with deterministic(asked):
                found[name] = seconds(engine_step(trainer, images), device, rounds)
            del trainer
            free(device)
        found["the network in a bare loop"] = seconds(bare_step(case, images), device, rounds)
        free(device)
        if case.name == "iresnet50":
            found["arcface_torch (fp16)"] = seconds(peer_step(case, images), device, rounds)
            torch.backends.cudnn.benchmark = False
            free(device)
        rows += [_row(case, name, found) for name in found]
    return rows


def _row(case: Case, name: str, found: dict[str, float]) -> Row:
    peer = found.get("arcface_torch (fp16)")
    return {
        "backbone": f"{case}: {name}",
        "ms": 1e3 * found[name],
        "images/s": case.batch / found[name],
        "× arithmetic": found[name] / found["arithmetic alone"],
        "× bare loop": found[name] / found["the network in a bare loop"],
        "× arcface_torch": None if peer is None else found[name] / peer,
    }


# The smallest of everything, to see that it runs.
TINY = replace(Case("sphereface4"), height=32, width=32, batch=8, precision="float32", dim=8, peer_blocks=(1, 1, 1, 1))
