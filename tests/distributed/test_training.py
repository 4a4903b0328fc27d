"""A whole run on 1, 2 and 3 ranks against a dense float64 run written out by hand; resume, bit for bit."""

from __future__ import annotations

import json
import logging
import shutil
import statistics
from collections.abc import Collection
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from pipeline import planning
from pipeline.backbones.sphereface import SphereFaceBackbone
from pipeline.head.margins.a_softmax import ASoftmax
from pipeline.head.margins.softmax import ModifiedSoftmax
from pipeline.head.rows import initial_rows
from pipeline.optim import Optimizer
from pipeline.optim.sgd import SGD
from pipeline.planning import Network
from pipeline.planning.of_recipe import job_of
from pipeline.reading.dali import Decoder
from pipeline.reading.order import Order
from pipeline.reading.reader import Reader
from pipeline.reading.tars import ShardSet
from pipeline.recipe.phases import Phase
from pipeline.recipe.schema import Checkpoint, Data, Faults, Head, Log, Recipe
from pipeline.run.whole import load_backbone
from pipeline.shards.format.manifest import Manifest
from pipeline.shards.views.undecodable import read_undecodable
from pipeline.training.guard import NonFiniteError
from pipeline.training.record import Record
from tests.distributed.dense import dense_loss
from tests.distributed.ranks import run_ranks
from tests.distributed.trainer import trainer_of
from tests.faces import write_shards

STEPS = 20


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("set"), identities=7, images=6)


def recipe(shards: Path, **changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "seed": 3,
        "data": Data(shards=shards, global_batch=12, streams=2, decode_threads=1),
        "backbone": SphereFaceBackbone(name="sphereface4", embedding_dim=8),
        "head": Head(margin=ASoftmax(lambda_max=50, lambda_gamma=0.5)),
        "optimizer": SGD(
            steps=STEPS, learning_rate=0.02, warmup_steps=3, milestones=(15,), bias_rate_factor=2, bias_weight_decay=0
        ),
        "checkpoint": Checkpoint(every=7),
    }
    return Recipe(**{**fields, **changes})


def train_on(rank: int, ranks: int, plan: Recipe, run: Path, resume: int | None = None) -> dict[str, Any]:
    trainer = trainer_of(rank, ranks, plan, run, resume)
    records = list(trainer.train())
    return {
        "losses": [r.loss for r in records],
        "gradient_norms": [r.values["gradient_norm"] for r in records],
        "clip_ratios": [r.values.get("gradient_clip_ratio") for r in records],
        "sent": [
            tuple(sent.values()) for r in records if isinstance(sent := r.values["communication_bytes_total"], dict)
        ],
        "backbone": {k: v.clone() for k, v in trainer.engine.parameters().items()},
        "rows": trainer.head.weight_SD.detach().clone(),
    }


def dense_run(plan: Recipe) -> dict[str, Any]:
    """The same run in float64 by the textbook: all rows and logits at once, SGD and schedules written out."""
    shards = ShardSet(plan.data.shards)
    torch.manual_seed(plan.seed)
    backbone = plan.backbone.build((32, 32)).double()
    rows = initial_rows(range(shards.manifest.identities), plan.backbone.embedding_dim, plan.seed).double()
    if plan.head.unit_rows:
        rows /= rows.norm(dim=1, keepdim=True)
    rows.requires_grad_()
    named = {**dict(backbone.named_parameters()), "rows": rows}
    velocity = {name: torch.zeros_like(p) for name, p in named.items()}
    assert plan.data.streams is not None
    order = Order(shards.samples_per_tar, plan.seed, plan.data.global_batch, plan.data.streams, plan.data.window)
    reader = Reader(shards, order, Decoder(12, 32, 32, torch.device("cpu"), 1, plan.data.augment))
    losses, gradient_norms = [], []
    for step in range(plan.optimizer.steps):
        batch = next(reader)
        lambda_ = max(5.0, 50 / (1 + 0.5 * (step + 1)))
        rate = 0.02 * min(1, (step + 1) / 3) * (0.1 if step >= 15 else 1)
        loss = dense_loss(backbone(batch.images_BCHW.double()), rows, batch.labels_B, ASoftmax(m=4), lambda_)
        grads = torch.autograd.grad(loss, list(named.values()))
        with torch.no_grad():
            factors = clip_factors(plan.optimizer, grads)
            for (name, p), grad, factor in zip(named.items(), grads, factors, strict=True):
                bias = name.endswith("bias")
                velocity[name].mul_(0.9).add_(factor * grad + (0 if bias else 5e-4) * p)
                p.sub_(velocity[name] * rate * (2 if bias else 1))
            if plan.head.unit_rows:
                rows /= rows.norm(dim=1, keepdim=True)
        losses.append(loss.item())
        gradient_norms.append(sum(float((grad**2).sum()) for grad in grads[:-1]) ** 0.5)
    reader.close()
    return {
        "losses": losses,
        "gradient_norms": gradient_norms,
        "backbone": {k: v.detach() for k, v in backbone.named_parameters()},
        "rows": rows.detach(),
    }


def clip_factors(keys: Optimizer, grads: tuple[torch.Tensor, ...]) -> list[float]:
    """What clipping multiplies each gradient by; the last is that of the rows."""
    if keys.clip_norm is None:
        return [1.0] * len(grads)
    clipped = grads if keys.clip_rows else grads[:-1]
    factor = min(1.0, keys.clip_norm / sum(float((grad**2).sum()) for grad in clipped) ** 0.5)
    return [factor] * len(clipped) + [1.0] * (len(grads) - len(clipped))


def assert_near(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Each tensor within 0.2% by its norm: an activation so near to 0 that rounding turns its sign moves one number."""
    for name, want in wanted.items():
        apart = (got[name].double() - want).norm() / want.norm()
        assert apart < 2e-3, f"{name}: {apart:.1e}"


@pytest.fixture(scope="module")
def dense(shards: Path) -> dict[str, Any]:
    return dense_run(recipe(shards))


@pytest.fixture(scope="module")
def dense_with_unit_rows(shards: Path) -> dict[str, Any]:
    return dense_run(recipe(shards, head=with_unit_rows()))


def with_unit_rows(**changes: Any) -> Head:
    return Head(margin=ASoftmax(lambda_max=50, lambda_gamma=0.5), unit_rows=True, **changes)


def sent_in(record: Record) -> tuple[float, ...]:
    """Bytes that a rank sent in a step: for the head, and for the backbone."""
    sent = record.values["communication_bytes_total"]
    assert isinstance(sent, dict)
    return tuple(sent.values())


def planned_bytes(plan: Recipe, ranks: int, backbone: dict[str, torch.Tensor]) -> tuple[float, float]:
    """What the planner says that a rank sends in a step: for the head, and for the backbone."""
    job = job_of(plan.model_copy(update={"head": Head()}), 7, ranks)
    sent = planning.traffic(job, Network(sum(p.numel() for p in backbone.values()), 0, 0))
    whole = sent.pop("all-reduce of the network's gradient")
    agreement = 2 * (ranks - 1) / ranks * 4 * (3 + 4 * ranks)
    return sum(sent.values()) + agreement, whole


VARIANTS = [
    (1, {}),
    (2, {}),
    (3, {}),
    (2, {"zero_stage": 1}),
    (2, {"zero_stage": 2}),
    (3, {"zero_stage": 3}),
    (2, {"accumulation": 3}),
]


@pytest.mark.parametrize(("ranks", "change"), VARIANTS, ids=lambda v: str(v)[:40])
def test_a_run_equals_the_dense_float64_run(
    shards: Path, dense: dict[str, Any], tmp_path: Path, ranks: int, change: dict[str, Any]
) -> None:
    plan = recipe(shards)
    if "accumulation" in change:
        plan = recipe(shards, data=plan.data.model_copy(update=change))
    else:
        plan = recipe(shards, **change)
    results = run_ranks(train_on, ranks, plan, tmp_path)
    for result in results:
        assert result["losses"] == pytest.approx(dense["losses"], rel=2e-5)
        assert result["gradient_norms"] == pytest.approx(dense["gradient_norms"], rel=1e-3)
        assert_near(result["backbone"], dense["backbone"])
    if plan.head.ranks:  # every rank holds all rows
        assert all(torch.equal(r["rows"], results[0]["rows"]) for r in results)
        results = results[:1]
    rows = torch.cat([r["rows"] for r in results]).double()
    torch.testing.assert_close(rows, dense["rows"], rtol=1e-4, atol=2e-6)
    assert dense["losses"][-1] < dense["losses"][0], "the reference itself did not learn"
    assert results[0]["sent"][STEPS // 2] == pytest.approx(planned_bytes(plan, ranks, dense["backbone"]), abs=8)


@pytest.mark.parametrize(
    ("ranks", "head"), [(1, {"fused_update": True}), (3, {}), (2, {"fused_update": True}), (2, {"ranks": 1})]
)
def test_unit_rows_stay_on_the_sphere_as_the_dense_runs_do(
    shards: Path, dense_with_unit_rows: dict[str, Any], tmp_path: Path, ranks: int, head: dict[str, Any]
) -> None:
    results = run_ranks(train_on, ranks, recipe(shards, head=with_unit_rows(**head)), tmp_path)
    for result in results:
        assert result["losses"] == pytest.approx(dense_with_unit_rows["losses"], rel=2e-5)
    rows = torch.cat([r["rows"] for r in (results[:1] if head.get("ranks") else results)]).double()
    torch.testing.assert_close(rows, dense_with_unit_rows["rows"], rtol=1e-4, atol=2e-6)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)).double(), rtol=0, atol=1e-6)


CLIPPED = [
    (1, {}, {}),
    (2, {"zero_stage": 1}, {}),
    (3, {"zero_stage": 2}, {"clip_rows": True}),
    (2, {"zero_stage": 3}, {"clip_rows": True}),
    (3, {}, {"accumulation": 2, "clip_rows": True}),
    (2, {"zero_stage": 2}, {"accumulation": 3}),
]


@pytest.mark.parametrize(("ranks", "change", "keys"), CLIPPED, ids=lambda v: str(v)[:40])
def test_a_clipped_run_equals_the_dense_float64_run(
    shards: Path,
    dense: dict[str, Any],
    tmp_path: Path,
    ranks: int,
    change: dict[str, Any],
    keys: dict[str, Any],
) -> None:
    plain = recipe(shards)
    most = statistics.median(dense["gradient_norms"][:5])  # some gradients are clipped and others are not
    sgd = plain.optimizer.model_copy(update={"steps": 5, "clip_norm": most, "clip_rows": keys.get("clip_rows", False)})
    data = plain.data.model_copy(update={"accumulation": keys.get("accumulation", 1)})
    plan = recipe(shards, optimizer=sgd, data=data, **change)
    wanted = dense_run(plan)
    results = run_ranks(train_on, ranks, plan, tmp_path)
    for result in results:
        assert result["losses"] == pytest.approx(wanted["losses"], rel=2e-5)
        assert result["gradient_norms"] == pytest.approx(wanted["gradient_norms"], rel=1e-3)
        assert min(result["clip_ratios"]) < 0.95, result["gradient_norms"]
        if not sgd.clip_rows:
            factors = [min(1, most / norm) for norm in wanted["gradient_norms"]]
            assert result["clip_ratios"] == pytest.approx(factors, rel=1e-3)
            assert max(factors) == 1, "all were clipped"
        assert_near(result["backbone"], wanted["backbone"])
    rows = torch.cat([result["rows"] for result in results]).double()
    torch.testing.assert_close(rows, wanted["rows"], rtol=1e-4, atol=2e-6)


def test_a_norm_that_no_gradient_reaches_and_a_trace_change_no_bit(shards: Path, tmp_path: Path) -> None:
    sgd = recipe(shards).optimizer.model_copy(update={"steps": 3})
    wide = sgd.model_copy(update={"clip_norm": 1e9, "clip_rows": True})
    (plain,) = run_ranks(train_on, 1, recipe(shards, optimizer=sgd), tmp_path / "plain")
    traced = recipe(shards, optimizer=wide, log=Log(profile=(2,)))
    (clipped,) = run_ranks(train_on, 1, traced, tmp_path / "clipped")
    assert clipped["losses"] == plain["losses"]
    assert torch.equal(clipped["rows"], plain["rows"])
    assert all(torch.equal(clipped["backbone"][name], value) for name, value in plain["backbone"].items())
    (file,) = (tmp_path / "clipped" / "profile").iterdir()
    names = {event.get("name") for event in json.loads(file.read_text())["traceEvents"]}
    assert file.name == "step-00000002.json"
    assert {"data_wait", "forward", "head", "backward", "update"} <= names


def train_each_on(rank: int, ranks: int, plans: list[Recipe], run: Path) -> list[dict[str, Any]]:
    return [train_on(rank, ranks, plan, run / str(number)) for number, plan in enumerate(plans)]


class Said(logging.Handler):
    """What is logged about undecodable samples."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []
        logging.getLogger("pipeline.training.undecodable").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def train_each_on_and_again(rank: int, ranks: int, plans: list[Recipe], run: Path) -> dict[str, Any]:
    """Also a run of the first plan that has the first one's list of undecodable samples."""
    said, told, leave_out = Said(), list[list[int]](), Reader.leave_out

    def noted(self: Reader, undecodable: Collection[int]) -> None:
        told.append(sorted(undecodable))
        leave_out(self, undecodable)

    setattr(Reader, "leave_out", noted)  # noqa: B010
    results = train_each_on(rank, ranks, plans, run)
    if rank == 0:
        (run / "again").mkdir()
        shutil.copy(run / "0" / "undecodable.tsv", run / "again")
    dist.barrier()
    again = train_on(rank, ranks, plans[0], run / "again")
    return {"results": results, "again": again, "said": said.messages, "told": told}


def test_the_loss_is_the_mean_over_the_samples_that_can_be_decoded(tmp_path: Path) -> None:
    broken, victims = write_shards(tmp_path / "set", identities=7, images=6), [3, 20, 21]
    plan = recipe(broken)
    plan = recipe(broken, optimizer=plan.optimizer.model_copy(update={"steps": 7}))
    plans = [plan.model_copy(update={"zero_stage": stage}) for stage in range(4)]
    with (broken / "faces-000000.tar").open("r+b") as file:
        for row in np.load(broken / "index.npy")[victims]:
            file.seek(int(row["offset"]))
            file.write(bytes(int(row["size"])))
    wanted = dense_run(plan)
    ranks = run_ranks(train_each_on_and_again, 2, plans, tmp_path / "run")
    for result in chain.from_iterable(rank["results"] for rank in ranks):
        assert result["losses"] == pytest.approx(wanted["losses"], rel=2e-5)
        assert_near(result["backbone"], wanted["backbone"])
    # Each was met on either rank and in two epochs, reported once, and is known to the next start.
    manifest = Manifest.load(broken)
    assert [read_undecodable(tmp_path / f"run/{number}/undecodable.tsv", manifest) for number in range(4)] == [
        victims
    ] * 4
    first, second = (rank["said"] for rank in ranks)
    assert sorted(message.partition(" (")[0] for message in first[:-1]) == sorted(
        f"cannot decode sample {victim}" for victim in victims * 4
    )
    assert first[-1].endswith("again/undecodable.tsv: leaving out 3 samples that could not be decoded before")
    assert second == []
    for rank in ranks:
        assert rank["told"][-1] == victims
        assert rank["again"]["losses"] == rank["results"][0]["losses"]
        assert torch.equal(rank["again"]["rows"], rank["results"][0]["rows"])


def test_bf16_follows_the_dense_run(shards: Path, dense: dict[str, Any], tmp_path: Path) -> None:
    (result,) = run_ranks(train_on, 1, recipe(shards, precision="bfloat16"), tmp_path)
    assert result["losses"] == pytest.approx(dense["losses"], rel=0.05)
    assert all(tensor.dtype == torch.float32 for tensor in result["backbone"].values())


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 0), (2, 1), (3, 2), (3, 3)])
def test_resume_is_bitwise_on_the_same_ranks(shards: Path, tmp_path: Path, ranks: int, stage: int) -> None:
    plan = recipe(shards, zero_stage=stage)
    whole = run_ranks(train_on, ranks, plan, tmp_path)
    again = run_ranks(train_on, ranks, plan, tmp_path, 7)
    for first, second in zip(whole, again, strict=True):
        assert second["losses"] == first["losses"][7:]
        assert torch.equal(second["rows"], first["rows"])
        assert all(torch.equal(second["backbone"][k], v) for k, v in first["backbone"].items())
    _, saved = load_backbone(tmp_path)
    assert all(torch.equal(saved[k], v) for k, v in whole[0]["backbone"].items())


@pytest.mark.parametrize(("before", "after"), [((1, 0), (2, 2)), ((2, 1), (3, 3)), ((3, 2), (1, 1)), ((3, 3), (2, 0))])
def test_resume_on_other_ranks_and_zero_stages(
    shards: Path, tmp_path: Path, before: tuple[int, int], after: tuple[int, int]
) -> None:
    whole = run_ranks(train_on, before[0], recipe(shards, zero_stage=before[1]), tmp_path)
    again = run_ranks(train_on, after[0], recipe(shards, zero_stage=after[1]), tmp_path, 7)
    wanted = whole[0]["losses"][7:]
    assert again[0]["losses"][0] == pytest.approx(wanted[0], rel=1e-6), "the same step from the same state"
    assert again[0]["losses"] == pytest.approx(wanted, rel=1e-5)


CHAIN = ((1, 0, 5), (2, 1, 9), (3, 2, 13), (2, 3, 17), (1, 3, STEPS))


def test_one_run_over_changing_ranks_and_zero_stages(shards: Path, tmp_path: Path) -> None:
    """1 → 2 → 3 → 2 → 1 ranks, 7 classes that neither 2 nor 3 divides, each leg with another ZeRO stage."""
    whole = run_ranks(train_on, 1, recipe(shards), tmp_path / "whole")[0]
    losses: list[float] = []
    for ranks, stage, until in CHAIN:
        plan = recipe(shards, zero_stage=stage)
        plan = recipe(shards, zero_stage=stage, optimizer=plan.optimizer.model_copy(update={"steps": until}))
        legs = run_ranks(train_on, ranks, plan, tmp_path / "chain", len(losses) or None)
        assert all(leg["losses"] == legs[0]["losses"] for leg in legs)
        losses += legs[0]["losses"]
        assert len(losses) == until
    assert losses == pytest.approx(whole["losses"], rel=1e-5)
    torch.testing.assert_close(legs[0]["rows"], whole["rows"], rtol=1e-4, atol=1e-6)
    for name, wanted in whole["backbone"].items():
        torch.testing.assert_close(legs[0]["backbone"][name], wanted, rtol=1e-4, atol=1e-6)


def not_finite(rank: int, ranks: int, plan: Recipe, run: Path) -> tuple[str, bool]:
    trainer = trainer_of(rank, ranks, plan, run)
    records = trainer.train()
    next(records)
    if rank == 1:
        with torch.no_grad():
            trainer.head.weight_SD[0, 0] = torch.nan
    before = {k: v.clone() for k, v in trainer.engine.parameters().items()}
    rows = trainer.head.weight_SD.detach().clone()
    try:
        next(records)
    except NonFiniteError as error:
        same = torch.equal(rows.nan_to_num(), trainer.head.weight_SD.nan_to_num())
        same &= all(torch.equal(before[k], v) for k, v in trainer.engine.parameters().items())
        return str(error), same
    return "went on", False


def test_a_number_gone_wrong_on_one_rank_stops_all_before_anything_changes(shards: Path, tmp_path: Path) -> None:
    for message, unchanged in run_ranks(not_finite, 2, recipe(shards, faults=Faults(action="stop")), tmp_path):
        assert message.startswith("step 1: loss nan")
        assert "nothing of this step was applied" in message
        assert unchanged


def stalled(rank: int, ranks: int, plan: Recipe, run: Path) -> list[str]:
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("pipeline.training.loop").addHandler(handler)
    train_on(rank, ranks, plan, run)
    return said


def test_a_run_that_does_not_turn_is_told_by_one_rank_in_words(shards: Path, tmp_path: Path) -> None:
    plan = recipe(
        shards,
        optimizer=SGD(steps=STEPS, learning_rate=1e-9),
        head=Head(margin=ASoftmax(lambda_max=0, lambda_min=0)),
        log=Log(stall_steps=8),
    )
    first, second = run_ranks(stalled, 2, plan, tmp_path)
    assert len(first) == 2
    assert "the target angle has not fallen in 8 steps" in first[0]
    assert second == []


def test_phases_change_margin_and_restart_lambda(shards: Path, tmp_path: Path) -> None:
    margin = ASoftmax(m=1, lambda_max=0, lambda_min=0)
    head = Head(margin=margin, phases=(Phase(start=10, m=4, lambda_max=100, lambda_min=5),))
    assert [head.margin_at(step) for step in (0, 9)] == [margin, margin]
    assert [head.margin_at(step) for step in (10, 50)] == [ASoftmax(m=4, lambda_max=100, lambda_min=5)] * 2
    assert [head.lambda_at(step) for step in (9, 10, 19)] == [0, 100 / 1.1, 50]
    plain = run_ranks(train_on, 1, recipe(shards, head=Head(margin=ModifiedSoftmax())), tmp_path / "plain")[0]
    phased = run_ranks(train_on, 1, recipe(shards, head=head), tmp_path / "phased")[0]
    assert phased["losses"][:10] == pytest.approx(
        plain["losses"][:10], rel=1e-5
    )  # A-Softmax with m = 1 is modified softmax
    assert phased["losses"][10] > plain["losses"][10]
