"""Where the host waits for the device in a step: once, at its end, for one tensor.

There is no GPU here, so what would make the host wait is counted: a number taken out of a tensor, a result whose size
depends on numbers, a copy to the CPU, DeepSpeed's own synchronisation. A GPU's fused update is torch's on the CPU here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from deepspeed.accelerator import get_accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.backbones.iresnet import IResNetBackbone
from pipeline.head.margins.a_softmax import ASoftmax
from pipeline.optim.sgd import SGD
from pipeline.recipe.schema import Checkpoint, Data, Head, Recipe
from tests.distributed.ranks import run_ranks
from tests.distributed.test_head_seams import NormMargin
from tests.distributed.trainer import trainer_of
from tests.faces import write_shards

TAKES = ("cpu", "tolist", "numpy")


class Waits(TorchDispatchMode):
    """Writes down what a host would wait for, until the first copy to the CPU: what is there then, costs nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self._own = {name: getattr(torch.Tensor, name) for name in TAKES}
        # It does nothing on a CPU.
        get_accelerator().synchronize = lambda *_: self._note("synchronize")

    def __enter__(self) -> Any:
        for name, own in self._own.items():
            setattr(torch.Tensor, name, self._noting(name, own))
        return super().__enter__()

    def __exit__(self, *about: Any) -> None:
        super().__exit__(*about)
        for name, own in self._own.items():
            setattr(torch.Tensor, name, own)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal") or by_mask:
            self._note(name)
        return func(*args, **(kwargs or {}))

    def _noting(self, name: str, own: Any) -> Any:
        def noting(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self._note(name)
            return own(tensor, *args, **kwargs)

        return noting

    def _note(self, what: str) -> None:
        if "cpu" not in self.seen:
            self.seen.append(what)


def recipe(shards: Path, zero_stage: Literal[0, 1, 2, 3], **head: Any) -> Recipe:
    return Recipe(
        data=Data(shards=shards, global_batch=4, decode_threads=1),
        backbone=IResNetBackbone(name="iresnet18", embedding_dim=6),
        head=Head(**{"margin": ASoftmax(lambda_max=50), **head}),
        optimizer=SGD(steps=4, learning_rate=0.01, clip_norm=1.0),
        checkpoint=Checkpoint(every=4),
        zero_stage=zero_stage,
        precision="bfloat16",
    )


def waits_of(rank: int, ranks: int, plans: list[Recipe], run: Path) -> list[list[str]]:
    SGD.fused_on = frozenset({"cpu"})
    found = []
    for number, plan in enumerate(plans):
        trainer = trainer_of(rank, ranks, plan, run / str(number))
        take, waits = trainer.stepper.take, Waits()

        def watched(*args: Any, waits: Waits = waits, take: Any = take, **kwargs: Any) -> Any:
            waits.seen.clear()
            with waits:
                return take(*args, **kwargs)

        trainer.stepper.take = watched  # type: ignore[method-assign]
        for _ in trainer.train():
            pass
        found.append(waits.seen)
    return found


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("set"), identities=5, images=2, height=16, width=16)


def test_the_host_waits_once_at_the_end_of_a_step(shards: Path, tmp_path: Path) -> None:
    plans = [recipe(shards, 0), recipe(shards, 1), recipe(shards, 2)]
    plans += [recipe(shards, 0, margin=NormMargin()), recipe(shards, 0, fused_update=True)]
    (found,) = run_ranks(waits_of, 1, plans, tmp_path)
    # A fused update of the rows begins in the backward pass: the host must know before that the step is good.
    assert found == [["cpu"]] * 4 + [["_local_scalar_dense", "cpu"]]
