"""From outside: a margin with state and a kernel, each written here alone, train as the head's own do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import Field

from cluster.ranks.process_group import grid
from cluster.ranks.topology import split_range
from pipeline.backbones.sphereface import SphereFaceBackbone
from pipeline.head import HeadOptions, ShardedHead
from pipeline.head.kernels import FusedUpdate, Kernel, Scoring, Sink
from pipeline.head.margins import MARGINS, Margin, Observed, State, Target
from pipeline.head.margins.a_softmax import ASoftmax
from pipeline.head.margins.margin import ScaledMargin
from pipeline.head.rows import initial_rows
from pipeline.optim.sgd import SGD
from pipeline.recipe.file import describe_recipe, load_recipe
from pipeline.recipe.schema import Checkpoint, Data, Head, Recipe
from tests.distributed.ranks import TIMEOUT_SECONDS, run_ranks
from tests.distributed.trainer import trainer_of
from tests.faces import write_shards


@MARGINS.add("toy_norm_margin")
class NormMargin(ScaledMargin):
    """s (cos θ - b ‖x‖ / mean ‖x‖): good images, which have long embeddings, get the larger margin, as in AdaFace."""

    name: str = "toy_norm_margin"
    shift: float = Field(0.2, ge=0)
    """b."""
    rate: float = Field(0.25, gt=0, le=1)
    """How fast the running means follow."""

    def initial_state(self) -> dict[str, torch.Tensor]:
        return {"norm": torch.tensor(1.0), "cosine": torch.tensor(0.0)}

    def target_logit(self, target: Target, lambda_: float | None, state: State) -> torch.Tensor:  # noqa: ARG002
        return self.scale * (target.cosine_G - self.shift * target.embedding_norm_G / state["norm"] - state["cosine"])

    def next_state(self, state: State, observed: Observed) -> dict[str, torch.Tensor]:
        means = {"norm": observed.mean(observed.embedding_norm_G), "cosine": observed.mean(observed.cosine_G)}
        return {name: torch.lerp(state[name], mean, self.rate) for name, mean in means.items()}


@dataclass(frozen=True)
class DenseKernel:
    """A `Kernel` that holds all logits at once, by torch's own differentiation; `used` says what took each gradient."""

    used: list[str] = field(default_factory=list)

    def nontarget_logsumexp(
        self,
        features_GD: torch.Tensor,
        weight_SD: torch.Tensor,
        target_G: torch.Tensor,
        scoring: Scoring,
        sink: Sink | None = None,
        rows_n: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        numbers = torch.arange(len(weight_SD)) if rows_n is None else rows_n
        if sink is not None:
            rows_SD = weight_SD.detach()[numbers].requires_grad_()
            rows_SD.register_hook(self._taker(sink, numbers))
        else:
            rows_SD = weight_SD
        units_SD = torch.nn.functional.normalize(rows_SD, dim=1) if scoring.normalise_rows else rows_SD
        logits_GS = features_GD @ units_SD.t()
        is_target_GS = torch.arange(len(numbers)) == target_G[:, None]
        target_rows_GD = rows_SD[target_G.clamp(min=0)].masked_fill((target_G < 0)[:, None], 0)
        return logits_GS.masked_fill(is_target_GS, -torch.inf).logsumexp(1), target_rows_GD

    def _taker(self, sink: Sink, rows_n: torch.Tensor) -> Callable[[torch.Tensor], None]:
        def take(grad: torch.Tensor) -> None:
            if isinstance(sink.instead, FusedUpdate):
                self.used.append("update")
                sink.instead.rows.update(rows_n, grad.clone(), sink.instead.learning_rate)
            else:
                self.used.append("take")
                sink.take(0, grad.clone())

        return take

    def block_of(self, *, batch: int, embedding_dim: int, dtype: torch.dtype) -> int:  # noqa: ARG002 - see `Kernel`
        """All."""
        return 2**31

    def memory_bytes(
        self,
        *,
        rows: int,
        batch: int,
        embedding_dim: int,
        dtype: torch.dtype,  # noqa: ARG002 - see `Kernel`
        block: int | None,  # noqa: ARG002
        margin: Margin,  # noqa: ARG002
    ) -> int:
        """Logits and softmax; the block does not matter."""
        return 4 * (2 * rows * batch + rows * embedding_dim)


CLASSES, BATCH, DIM, STEPS, BAD = 11, 12, 6, 6, 3


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Embeddings [G, D] whose norms differ from step to step, and labels, some ignored; one step has no label."""
    generator = torch.Generator().manual_seed(4)
    found = []
    for step in range(STEPS):
        labels = torch.randint(-1, CLASSES, (BATCH,), generator=generator)
        x = torch.randn(BATCH, DIM, dtype=torch.float64, generator=generator) * (step + 1)
        found.append((x, torch.full_like(labels, -1) if step == 1 else labels))
    return found


def train_head(
    rank: int, ranks: int, margin: Margin, width: int | None, parts: int, options: HeadOptions
) -> dict[str, torch.Tensor]:
    """Steps of the head alone, the one at `BAD` dropped after its backward pass; width: ranks that share classes."""
    sharing, replicas = grid(ranks, width or ranks, TIMEOUT_SECONDS)
    head = ShardedHead(
        CLASSES,
        DIM,
        margin,
        sharing,
        replicas=replicas,
        seed=3,
        optimizer=SGD(steps=STEPS, learning_rate=0.2, weight_decay=0),
        options=replace(options, accumulation=parts),
    )
    share = split_range(BATCH, ranks, rank)
    states = []
    for step, (x, labels) in enumerate(batches()):
        mine = zip(x[share.start : share.stop].chunk(parts), labels[share.start : share.stop].chunk(parts), strict=True)
        for x_part, labels_part in mine:
            leaf = x_part.float().requires_grad_()
            output = head(leaf, labels_part, 5.0, step=step, learning_rate=0.2)
            if step != BAD or not options.fused_update:  # a fused update cannot be taken back
                (output.loss / parts).backward()
        if step == BAD:
            head.drop()
        else:
            head.update(0.2)
        states.append(torch.stack([head.state[name].clone() for name in sorted(head.state)] or [torch.tensor(0.0)]))
    return {
        "rows": head.weight_SD.detach().clone(),
        "first": torch.tensor(head.classes.start),
        "states": torch.stack(states),
        "used": torch.tensor([word == "update" for word in getattr(options.kernel, "used", [])]),
    }


def head_batches(ranks: int, width: int, parts: int) -> list[tuple[list[int], list[int]]]:
    """The samples that one loss is the mean of, and those that the margin's state has seen then.

    They are those of the ranks that share classes, and of all ranks, a micro-batch at a time.
    """
    shares = [np.array_split(split_range(BATCH, ranks, rank), parts) for rank in range(ranks)]
    seen = [np.concatenate(of_part).tolist() for of_part in zip(*shares, strict=True)]
    found: list[tuple[list[int], list[int]]] = []
    for first in range(0, ranks, width):
        pieces = zip(*shares[first : first + width], strict=True)
        found += [(np.concatenate(of_part).tolist(), seen[part]) for part, of_part in enumerate(pieces)]
    return found


def means_after(
    running: tuple[float, float], own: dict[int, tuple[float, float]], samples: Iterable[int], rate: float
) -> tuple[float, float]:
    """Running means of cosine and norm after some samples, of which `own` has those with a label."""
    labelled = [own[sample] for sample in samples if sample in own]
    if not labelled:
        return running
    cosine, norm = (sum(column) / len(labelled) for column in zip(*labelled, strict=True))
    return running[0] + rate * (cosine - running[0]), running[1] + rate * (norm - running[1])


def dense_run(margin: NormMargin, of_losses: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    """The same by the margin's equation in float64: all logits, torch's SGD, one process.

    The loss is the mean over `of_losses` of the mean over the samples of each that have a label; the running means that
    a sample is scored with are those of the last good step and of what was seen with it.
    """
    weight = initial_rows(range(CLASSES), DIM, seed=3).double().requires_grad_()
    sgd = torch.optim.SGD([weight], lr=0.2, momentum=0.9)
    running = (0.0, 1.0)  # cosine, norm
    states = []
    for step, (x, labels) in enumerate(batches()):
        if step != BAD:
            cosines = (x / x.norm(dim=1, keepdim=True)) @ (weight / weight.norm(dim=1, keepdim=True)).t()
            own = {
                sample: (cosines[sample, label].item(), float(x[sample].norm()))
                for sample, label in enumerate(labels)
                if label >= 0
            }
            sgd.zero_grad()
            loss = weight.sum() * 0
            for samples, seen in of_losses:
                mean_cosine, mean_norm = means_after(running, own, seen, margin.rate)
                losses = []
                for sample in samples:
                    if (label := int(labels[sample])) >= 0:
                        shift = margin.shift * own[sample][1] / mean_norm + mean_cosine
                        target = margin.scale * (cosines[sample, label] - shift)
                        rest = margin.scale * cosines[sample, torch.arange(CLASSES) != label]
                        losses.append(torch.logsumexp(torch.cat([target[None], rest]), 0) - target)
                if losses:
                    loss = loss + torch.stack(losses).mean() / len(of_losses)
            loss.backward()
            sgd.step()
            running = means_after(running, own, range(BATCH), margin.rate)
        states.append(torch.tensor(running, dtype=torch.float64))
    return {"rows": weight.detach(), "states": torch.stack(states)}


LAYOUTS = [(1, None, 1), (2, None, 1), (3, None, 1), (3, None, 2), (2, 1, 1), (4, 2, 1), (2, 1, 2)]


# A fused update needs the whole step in one backward pass.
WAYS = [(*layout, fused) for layout in LAYOUTS for fused in (False, True) if not (fused and layout[2] > 1)]


@pytest.mark.parametrize(("ranks", "width", "parts", "fused"), WAYS)
def test_a_margin_with_state_is_its_dense_reference_on_any_ranks(
    ranks: int, width: int | None, parts: int, fused: bool
) -> None:
    margin = NormMargin(scale=8)
    want = dense_run(margin, head_batches(ranks, width or ranks, parts))
    options = HeadOptions(block=4, fused_update=fused)
    for got in run_ranks(train_head, ranks, margin, width, parts, options):
        torch.testing.assert_close(got["states"].double(), want["states"], rtol=1e-5, atol=1e-6)
        part = slice(int(got["first"]), int(got["first"]) + len(got["rows"]))
        torch.testing.assert_close(got["rows"].double(), want["rows"][part], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("ranks", "width", "parts"), LAYOUTS[1:])
def test_state_is_the_same_on_every_rank_to_the_bit_and_a_dropped_step_leaves_it(
    ranks: int, width: int | None, parts: int
) -> None:
    results = run_ranks(train_head, ranks, NormMargin(scale=8), width, parts, HeadOptions(block=4))
    states = results[0]["states"]
    assert all(torch.equal(result["states"], states) for result in results)
    changed = [not torch.equal(before, after) for before, after in pairwise(states)]
    assert changed == [step not in (1, BAD) for step in range(1, STEPS)]  # step 1 has no label


def train_spoilt(rank: int, ranks: int, plan: Recipe, run: Path, how: str) -> dict[str, Any]:
    """A whole run, whose step `BAD` goes wrong on the last rank; the head's state after every step."""
    trainer = trainer_of(rank, ranks, plan, run)
    embed, backward = trainer.engine.embed, trainer.engine.backward

    def bad_embed(images: torch.Tensor) -> torch.Tensor:
        return embed(images * (math.nan if trainer.step == BAD and how == "embedding" else 1))

    def bad_backward(embeddings: torch.Tensor, grad: torch.Tensor) -> None:
        backward(embeddings, grad * (math.inf if trainer.step == BAD and how == "gradient" else 1))

    if rank == ranks - 1:
        trainer.engine.embed, trainer.engine.backward = bad_embed, bad_backward  # type: ignore[method-assign,assignment]
    states = [{name: value.clone() for name, value in trainer.head.state.items()}]
    held = dict(trainer.head.state)
    skipped = []
    for record in trainer.train():
        skipped += [record.step - 1] if record.skipped else []
        states.append({name: value.clone() for name, value in trainer.head.state.items()})
    assert all(trainer.head.state[name] is value for name, value in held.items()), "a checkpoint holds these tensors"
    return {"states": states, "skipped": skipped, "lambda": trainer.recipe.head.lambda_at(0)}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("set"), identities=7, images=6)


CHANGES = [
    ({}, {}, "gradient"),
    ({"fused_update": True}, {}, "embedding"),
    ({"ranks": 1}, {"accumulation": 2}, "embedding"),
]


@pytest.mark.parametrize(("head", "data", "how"), CHANGES, ids=["plain", "fused", "replicas and micro-batches"])
def test_a_bad_step_of_a_run_leaves_the_state_as_it_was(
    shards: Path, tmp_path: Path, head: dict[str, Any], data: dict[str, Any], how: str
) -> None:
    plan = Recipe(
        seed=3,
        data=Data(shards=shards, global_batch=12, streams=2, decode_threads=1, **data),
        backbone=SphereFaceBackbone(name="sphereface4", embedding_dim=8),
        head=Head(margin=NormMargin(scale=8), **head),
        optimizer=SGD(steps=STEPS, learning_rate=0.01),
        checkpoint=Checkpoint(every=STEPS),
    )
    first, second = run_ranks(train_spoilt, 2, plan, tmp_path, how)
    assert first["states"] == second["states"]
    assert first["skipped"] == [BAD]
    assert first["lambda"] is None
    states = first["states"]
    assert [step for step in range(STEPS) if states[step] == states[step + 1]] == [BAD]
    assert all(math.isfinite(value) for state in states for value in state.values())


def test_a_margin_from_outside_is_a_choice_of_the_recipe_with_its_keys(tmp_path: Path) -> None:
    rest = (
        "data: {shards: s, global_batch: 8}\nbackbone: {name: sphereface4}\noptimizer: {steps: 1, learning_rate: 0.1}"
    )
    (tmp_path / "recipe.yaml").write_text("head: {margin: toy_norm_margin}\n" + rest)
    head = load_recipe(tmp_path / "recipe.yaml", ["head.margin.shift=0.1", "head.phases=[{start: 5, rate: 0.5}]"]).head
    assert head.margin == NormMargin(shift=0.1)
    assert head.margin_at(5) == NormMargin(shift=0.1, rate=0.5)
    assert "head.margin.rate (float; default 0.25)\n      How fast the running means follow." in describe_recipe()


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "fused": {"fused_update": True},
    "sampled": {"sample_rate": 0.5},
    "sampled and fused": {"sample_rate": 0.5, "fused_update": True},
}


# Replicas would sample other classes.
PLACES = [(1, None), (2, None), (2, 1)]
COMBINED = [(*place, how) for place in PLACES for how in OPTIONS if not (place[1] and "sampled" in how)]


@pytest.mark.parametrize(("ranks", "width", "how"), COMBINED)
def test_a_kernel_from_outside_gives_the_same_rows(ranks: int, width: int | None, how: str) -> None:
    kernel: Kernel = DenseKernel()
    own = run_ranks(train_head, ranks, ASoftmax(m=3), width, 1, HeadOptions(block=4, **OPTIONS[how]))
    outside = run_ranks(train_head, ranks, ASoftmax(m=3), width, 1, HeadOptions(kernel=kernel, **OPTIONS[how]))
    for got, want in zip(outside, own, strict=True):
        torch.testing.assert_close(got["rows"], want["rows"], rtol=1e-4, atol=1e-5)
        # It updates rows itself only if no average comes between.
        assert got["used"].tolist() == ["fused" in how and width is None] * len(got["used"])
        assert len(got["used"]) == STEPS - ("fused" in how)
