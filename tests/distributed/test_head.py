"""The sharded, streamed head equals a dense float64 classifier on 1, 2 and 3 ranks: loss and both gradients."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cluster.ranks.collectives import num_ranks, rank_in
from cluster.ranks.process_group import grid
from pipeline.head import HeadOptions, ShardedHead
from pipeline.head.margins import MARGINS, Margin
from pipeline.head.margins.a_softmax import ASoftmax
from pipeline.head.margins.softmax import Softmax
from pipeline.head.rows import initial_rows, sampled_rows
from pipeline.optim.sgd import SGD
from tests.distributed.dense import dense_loss
from tests.distributed.ranks import TIMEOUT_SECONDS, run_ranks


@dataclass(frozen=True)
class Case:
    margin: Margin = ASoftmax(m=4)
    lambda_: float = 5.0
    classes: int = 23  # divides by neither 2 nor 3, nor by the block
    batch: int = 12
    dim: int = 9
    block: int = 4
    scale: float = 3.0
    labels: tuple[int, ...] | None = None
    state: dict[str, float] = field(default_factory=dict)

    def inputs(self) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(7)
        x = torch.randn(self.batch, self.dim, dtype=torch.float64, generator=generator) * self.scale
        labels = torch.randint(0, self.classes, (self.batch,), generator=generator)
        return x, labels if self.labels is None else torch.tensor(self.labels)


CHOICES: list[dict[str, Any]] = [
    *[{"name": "a_softmax", "m": m} for m in (1, 2, 3, 4, 2.5)],
    {"name": "modified_softmax"},
    {"name": "softmax"},
    {"name": "a_softmax_normalised", "m": 1.7, "scale": 8},
    {"name": "sphereface_r_v1", "m": 1.4, "scale": 8},
    {"name": "sphereface_r_v2", "m": 1.4, "scale": 8},
    {"name": "cosface", "scale": 8},
    {"name": "arcface", "scale": 8},
    {"name": "combined", "m": 1.3, "scale": 8, "angle": 0.2, "cosine": 0.1},
    {"name": "a_softmax", "m": 1.4, "detached": True},
    {"name": "sphereface_r_v1", "m": 1.4, "scale": 8, "detached": True},
    {"name": "sphereface_r_v2", "m": 1.4, "scale": 8, "detached": True},
    # norms are between 5 and 13: shorter and longer
    {"name": "sphereface_r_v1", "m": 1.4, "scale": 8, "feature_norm": "soft", "softness": 0.2},
    {"name": "sphereface_r_v1", "m": 1.4, "feature_norm": "none", "detached": True},
    {"name": "arcface", "scale": 8, "detached": True},
    {"name": "arcface", "scale": 8, "filter": 0.3},
    {"name": "cosface", "scale": 8, "filter": 0.3},
    {"name": "adaface", "scale": 8},
    # norms are between 5 and 13: shorter, within and longer
    {"name": "magface", "scale": 8, "norm_low": 7, "norm_high": 10},
    {"name": "curricularface", "scale": 8},
    {"name": "sphereface2", "scale": 8},
    {"name": "sphereface2", "scale": 8, "detached": False, "exponent": 2.5, "loss_weight": 1},
    {"name": "uniface", "scale": 8, "balance": 0.5},
    {"name": "elasticface_arc", "scale": 8, "deviation": 0.3},
    {"name": "elasticface_cos", "scale": 8, "deviation": 0.3},
]
CASES = {
    **{", ".join(map(str, choice.values())): Case(MARGINS.parse(choice)) for choice in CHOICES},
    "a_softmax λ=1500": Case(lambda_=1500.0),
    "a_softmax λ=0": Case(lambda_=0.0),
    # norms between 5 and 13 are of low, average and high quality
    "adaface later": Case(
        MARGINS.parse({"name": "adaface", "scale": 8, "rate": 0.2}), state={"mean": 9, "deviation": 1}
    ),
    "curricularface later": Case(
        MARGINS.parse({"name": "curricularface", "scale": 8, "rate": 0.2, "angle": 0.1}), state={"t": 0.6}
    ),
    "one block": Case(block=100),
    "blocks of one": Case(block=1),
    "ignored samples": Case(labels=(-1, 3, 22, -1, 0, 5, 5, 11, -1, 14, 15, 16)),
    "all targets on the first rank": Case(labels=(0, 1, 2, 0, 1, 2, 3, 3, 3, 0, 0, 1)),
    "all targets on the last rank": Case(labels=(22,) * 12),
    "as many classes as ranks": Case(classes=3, labels=(0, 1, 2) * 4),
    "logits of 1e4": Case(scale=1e4),
    "logits of -1e4": Case(Softmax(), scale=1e4, labels=(5,) * 12),
    "tiny embeddings": Case(scale=1e-6),
}


def head_steps(rank: int, ranks: int, cases: dict[str, Case]) -> dict[str, dict[str, torch.Tensor]]:
    return {name: _step(case, dist.group.WORLD, rank, ranks) for name, case in cases.items()}


def _step(case: Case, group: dist.ProcessGroup | None, rank: int, ranks: int) -> dict[str, torch.Tensor]:
    x, labels = case.inputs()
    share = slice(rank * case.batch // ranks, (rank + 1) * case.batch // ranks)
    mine = x[share].clone().requires_grad_()
    options = HeadOptions(block=case.block)
    head = ShardedHead(
        case.classes, case.dim, case.margin, group, seed=3, options=options, backbone_gradient="summed"
    ).double()
    for name, value in case.state.items():
        head.state[name].fill_(value)
    output = head(mine, labels[share], case.lambda_, step=0)
    output.loss.backward()
    assert mine.grad is not None and head.weight_SD.grad is not None
    return {
        "loss": output.loss.detach(),
        "x_grad": mine.grad,
        "w_grad": head.weight_SD.grad,
        "rows": head.weight_SD.detach(),
        "cosine": output.target_cosine_G,
        "norm": output.embedding_norm_G,
    }


@pytest.fixture(scope="module", params=[1, 2, 3])
def on_ranks(request: pytest.FixtureRequest) -> list[dict[str, dict[str, torch.Tensor]]]:
    """Every case on 1, 2 or 3 ranks; one start of the ranks serves all."""
    if request.param == 1:
        return [{name: _step(case, None, 0, 1) for name, case in CASES.items()}]
    return run_ranks(head_steps, request.param, CASES)


@pytest.mark.parametrize("name", CASES)
def test_sharded_equals_dense(name: str, on_ranks: list[dict[str, dict[str, torch.Tensor]]]) -> None:
    case, results = CASES[name], [result[name] for result in on_ranks]
    x, labels = case.inputs()
    x.requires_grad_()
    weight = initial_rows(range(case.classes), case.dim, seed=3).double().requires_grad_()
    loss = dense_loss(x, weight, labels, case.margin, case.lambda_, case.state, seed=3)
    loss.backward()
    assert torch.equal(torch.cat([r["rows"] for r in results]), weight.detach())
    for result in results:
        torch.testing.assert_close(result["loss"], loss.detach(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(result["norm"], x.detach().norm(dim=1))
        assert torch.equal(result["loss"], results[0]["loss"]), "ranks disagree"
    # gradients of very large logits are steep: compare relative to their own size
    for key, want in (("x_grad", x.grad), ("w_grad", weight.grad)):
        got = torch.cat([r[key] for r in results])
        assert want is not None
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9 * float(want.abs().max()) + 1e-15)


def test_target_cosine_is_that_of_the_target_row(on_ranks: list[dict[str, dict[str, torch.Tensor]]]) -> None:
    case = CASES["ignored samples"]
    x, labels = case.inputs()
    weight = initial_rows(range(case.classes), case.dim, seed=3).double()
    want = torch.nn.functional.cosine_similarity(x, weight[labels.clamp(min=0)])
    for result in on_ranks:
        torch.testing.assert_close(result["ignored samples"]["cosine"], want.masked_fill(labels < 0, 0))


PRECISIONS = {torch.float32: (1e-6, 1e-5), torch.bfloat16: (1e-3, 1e-2)}


def precise_step(rank: int, ranks: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    case = replace(CASES["one block"], classes=1001, batch=24, dim=64, block=128)
    group = dist.group.WORLD
    assert (rank, ranks) == (rank_in(group), num_ranks(group))
    x, labels = case.inputs()
    share = slice(rank * case.batch // ranks, (rank + 1) * case.batch // ranks)
    options = HeadOptions(block=case.block, dtype=dtype)
    results = []
    for _ in range(2):
        head = ShardedHead(
            case.classes, case.dim, case.margin, group, seed=3, options=options, backbone_gradient="summed"
        )
        mine = x[share].float().requires_grad_()
        loss = head(mine, labels[share], case.lambda_).loss
        loss.backward()
        assert mine.grad is not None and head.weight_SD.grad is not None
        results.append({"loss": loss.detach(), "x_grad": mine.grad, "w_grad": head.weight_SD.grad})
    assert all(torch.equal(results[0][k], results[1][k]) for k in results[0]), "not repeatable bit for bit"
    return results[0]


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_error_against_float64_is_what_is_promised_and_repeats_bitwise(dtype: torch.dtype) -> None:
    """fp32: 1e-6 of the loss, 1e-5 of a gradient's norm. bf16: 1e-3 and 1e-2."""
    of_loss, of_gradient = PRECISIONS[dtype]
    case = replace(CASES["one block"], classes=1001, batch=24, dim=64)
    x, labels = case.inputs()
    x.requires_grad_()
    weight = initial_rows(range(case.classes), case.dim, seed=3).double().requires_grad_()
    loss = dense_loss(x, weight, labels, case.margin, case.lambda_)
    loss.backward()
    results = run_ranks(precise_step, 2, dtype)
    for got in results:
        assert float(got["loss"]) == pytest.approx(loss.item(), rel=of_loss)
    for key, want in (("x_grad", x.grad), ("w_grad", weight.grad)):
        assert want is not None
        error = torch.cat([r[key] for r in results]).double() - want
        assert error.norm() <= of_gradient * want.norm()


def test_one_class_has_no_loss_and_no_gradient() -> None:
    head = ShardedHead(1, 5, ASoftmax(m=4))
    x = torch.randn(3, 5, requires_grad=True)
    output = head(x, torch.zeros(3, dtype=torch.int64), 5.0)
    output.loss.backward()
    assert output.loss == 0
    assert x.grad is not None and not x.grad.any()
    assert head.weight_SD.grad is not None and not head.weight_SD.grad.any()


def test_one_sample() -> None:
    case = replace(CASES["one block"], batch=1)
    got = _step(case, None, 0, 1)
    x, labels = case.inputs()
    want = dense_loss(x, got["rows"], labels, case.margin, case.lambda_)
    torch.testing.assert_close(got["loss"], want)


def test_rows_do_not_depend_on_the_split() -> None:
    whole = initial_rows(range(10_000), 3, seed=5)
    parts = [initial_rows(range(a, b), 3, seed=5) for a, b in ((0, 3), (3, 4096), (4096, 8193), (8193, 10_000))]
    assert torch.equal(torch.cat(parts), whole)
    assert whole.abs().max() <= 1
    assert not torch.equal(initial_rows(range(10), 3, seed=6), whole[:10])


def test_fewer_classes_than_ranks_is_refused() -> None:
    with pytest.raises(AssertionError, match="num_classes: got 1, wanted at least one for each of 2 ranks"):
        run_ranks(_too_few, 2)


def _too_few(rank: int, ranks: int) -> None:  # noqa: ARG001
    ShardedHead(1, 4, Softmax(), dist.group.WORLD)


# --- the rows' update: plain, fused, sampled, replicated ---


def sgd(weight_decay: float = 0.0) -> SGD:
    return SGD(steps=1, learning_rate=1.0, weight_decay=weight_decay)


def train_rows(rank: int, ranks: int, options: HeadOptions, width: int | None, steps: int) -> dict[str, torch.Tensor]:
    """`steps` steps of the head alone on fixed embeddings; width: ranks that share the classes."""
    case = Case()
    x, labels = case.inputs()
    share = slice(rank * case.batch // ranks, (rank + 1) * case.batch // ranks)
    sharing, replicas = grid(ranks, width or ranks, TIMEOUT_SECONDS)
    head = ShardedHead(
        case.classes, case.dim, case.margin, sharing, replicas=replicas, seed=3, optimizer=sgd(0.01), options=options
    )
    for step in range(steps):
        mine = x[share].float().requires_grad_()
        head(mine, labels[share], case.lambda_, step=step, learning_rate=0.5).loss.backward()
        head.update(0.5)
    assert mine.grad is not None
    return {
        "rows": head.weight_SD.detach(),
        "momentum": head.slots["momentum"],
        "first": torch.tensor(head.classes.start),
        "x_grad": mine.grad,
    }


def dense_rows(steps: int) -> dict[str, torch.Tensor]:
    """The same by torch.optim.SGD in float64."""
    case = Case()
    x, labels = case.inputs()
    weight = initial_rows(range(case.classes), case.dim, seed=3).double().requires_grad_()
    reference = torch.optim.SGD([weight], lr=0.5, momentum=0.9, weight_decay=0.01)
    for _ in range(steps):
        reference.zero_grad()
        dense_loss(x, weight, labels, case.margin, case.lambda_).backward()
        reference.step()
    return {"rows": weight.detach(), "momentum": reference.state[weight]["momentum_buffer"]}


LAYOUTS = [(1, None), (2, None), (3, None), (2, 1), (4, 2), (3, 1)]


@pytest.mark.parametrize(("ranks", "width"), LAYOUTS)
def test_update_equals_dense_sgd_and_the_fused_one_is_the_same_bit_for_bit(ranks: int, width: int | None) -> None:
    plain = run_ranks(train_rows, ranks, HeadOptions(block=4), width, 5)
    fused = run_ranks(train_rows, ranks, HeadOptions(block=4, fused_update=True), width, 5)
    want = dense_rows(5)
    for got, same in zip(plain, fused, strict=True):
        assert torch.equal(got["rows"], same["rows"])
        assert torch.equal(got["momentum"], same["momentum"])
        part = slice(int(got["first"]), int(got["first"]) + len(got["rows"]))
        torch.testing.assert_close(got["rows"].double(), want["rows"][part], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(got["momentum"].double(), want["momentum"][part], rtol=1e-4, atol=1e-6)


def test_accumulated_micro_batches_equal_one_batch() -> None:
    case = Case()
    x, labels = case.inputs()
    whole = ShardedHead(case.classes, case.dim, case.margin, seed=3, optimizer=sgd())
    options = HeadOptions(accumulation=2)
    parts = ShardedHead(case.classes, case.dim, case.margin, seed=3, optimizer=sgd(), options=options)
    for _ in range(3):
        whole(x.float().requires_grad_(), labels, case.lambda_).loss.backward()
        for half in (slice(0, 6), slice(6, 12)):
            (parts(x[half].float().requires_grad_(), labels[half], case.lambda_).loss / 2).backward()
        whole.update(0.5)
        parts.update(0.5)
    torch.testing.assert_close(parts.weight_SD, whole.weight_SD, rtol=1e-5, atol=1e-6)


def sample_on(rank: int, ranks: int, rate: float, step: int) -> list[int]:
    case = Case(classes=1000)
    labels = case.inputs()[1]
    head = ShardedHead(case.classes, case.dim, case.margin, dist.group.WORLD, seed=3)
    inside = (labels >= head.classes.start) & (labels < head.classes.stop)
    rows = sampled_rows(torch.where(inside, labels - head.classes.start, -1), head.classes, rate, seed=3, step=step)
    assert (rank, ranks) == (rank_in(head.group), num_ranks(head.group))
    return (rows + head.classes.start).tolist()


def test_the_same_classes_are_sampled_on_any_number_of_ranks() -> None:
    chosen = [list(chain.from_iterable(run_ranks(sample_on, ranks, 0.1, 7))) for ranks in (1, 2, 3)]
    assert chosen[0] == chosen[1] == chosen[2]
    assert set(Case(classes=1000).inputs()[1].tolist()) <= set(chosen[0])
    assert chosen[0] == sorted(set(chosen[0]))
    assert chosen[0] != run_ranks(sample_on, 1, 0.1, 8)[0]


def test_negatives_are_sampled_at_the_rate_and_independently_of_one_another() -> None:
    none = torch.full((1,), -1)
    drawn = torch.zeros(200, 2000)
    for step in range(200):
        drawn[step, sampled_rows(none, range(2000), 0.1, seed=0, step=step)] = 1
    assert abs(drawn.mean() - 0.1) < 4 * (0.09 / drawn.numel()) ** 0.5
    per_class = drawn.mean(0)
    assert abs(per_class.std() - (0.09 / 200) ** 0.5) < 0.002
    assert abs(torch.corrcoef(torch.stack([drawn[:-1].flatten(), drawn[1:].flatten()]))[0, 1]) < 0.01


def test_a_sampled_step_is_the_dense_step_of_the_sampled_classes_and_touches_no_other() -> None:
    case = Case()
    x, labels = case.inputs()
    options = HeadOptions(block=4, sample_rate=0.3)
    head = ShardedHead(case.classes, case.dim, case.margin, seed=3, optimizer=sgd(), options=options)
    head.slots["momentum"].fill_(0.25)
    before = head.weight_SD.detach().clone()
    rows = sampled_rows(labels, head.classes, 0.3, seed=3, step=0)
    assert len(rows) < case.classes
    loss = head(x.float().requires_grad_(), labels, case.lambda_, step=0).loss
    loss.backward()
    head.update(0.5)
    weight = before[rows].double().requires_grad_()
    want = dense_loss(x, weight, torch.searchsorted(rows, labels), case.margin, case.lambda_)
    want.backward()
    assert weight.grad is not None
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    moved = before[rows].double() - 0.5 * (0.9 * 0.25 + weight.grad)
    torch.testing.assert_close(head.weight_SD.detach()[rows].double(), moved, rtol=1e-4, atol=1e-6)
    rest = torch.tensor([i for i in range(case.classes) if i not in set(rows.tolist())])
    assert torch.equal(head.weight_SD.detach()[rest], before[rest])
    assert (head.slots["momentum"][rest] == 0.25).all()


@pytest.mark.parametrize(
    "options", [HeadOptions(block=4, sample_rate=0.3), HeadOptions(block=4, sample_rate=0.3, fused_update=True)]
)
def test_sampled_training_is_the_same_on_any_number_of_ranks(options: HeadOptions) -> None:
    one = run_ranks(train_rows, 1, options, None, 5)[0]["rows"]
    for ranks in (2, 3):
        rows = torch.cat([r["rows"] for r in run_ranks(train_rows, ranks, options, None, 5)])
        torch.testing.assert_close(rows, one, rtol=1e-4, atol=1e-6)
