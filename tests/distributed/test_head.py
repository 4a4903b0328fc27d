"""The sharded, streamed head equals a dense float64 classifier on 1, 2 and 3 ranks: loss and both gradients."""

from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist

from cluster.collectives import num_ranks, rank_in
from pipeline.head.head import HeadOptions, ShardedHead
from pipeline.head.margins import Margin
from pipeline.head.rows import initial_rows
from pipeline.head.streaming import others_logsumexp
from tests.distributed.dense import dense_loss
from tests.distributed.ranks import run_ranks


@dataclass(frozen=True)
class Case:
    margin: Margin = Margin("a_softmax", 4)
    anneal: float = 5.0
    classes: int = 23  # divides by neither 2 nor 3, nor by the block
    batch: int = 12
    dim: int = 9
    block: int = 4
    scale: float = 3.0
    labels: tuple[int, ...] | None = None

    def inputs(self) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(7)
        x = torch.randn(self.batch, self.dim, dtype=torch.float64, generator=generator) * self.scale
        labels = torch.randint(0, self.classes, (self.batch,), generator=generator)
        return x, labels if self.labels is None else torch.tensor(self.labels)


CASES = {
    **{f"a_softmax m={m}": Case(Margin("a_softmax", m)) for m in (1, 2, 3, 4, 2.5)},
    "a_softmax λ=1500": Case(anneal=1500.0),
    "a_softmax λ=0": Case(anneal=0.0),
    "modified_softmax": Case(Margin("modified_softmax")),
    "softmax": Case(Margin("softmax")),
    "one block": Case(block=100),
    "blocks of one": Case(block=1),
    "ignored samples": Case(labels=(-1, 3, 22, -1, 0, 5, 5, 11, -1, 14, 15, 16)),
    "all targets on the first rank": Case(labels=(0, 1, 2, 0, 1, 2, 3, 3, 3, 0, 0, 1)),
    "all targets on the last rank": Case(labels=(22,) * 12),
    "as many classes as ranks": Case(classes=3, labels=(0, 1, 2) * 4),
    "logits of 1e4": Case(scale=1e4),
    "tiny embeddings": Case(scale=1e-6),
}


def head_step(rank: int, ranks: int, case: Case) -> dict[str, torch.Tensor]:
    return _step(case, dist.group.WORLD, rank, ranks)


def _step(case: Case, group: dist.ProcessGroup | None, rank: int, ranks: int) -> dict[str, torch.Tensor]:
    x, labels = case.inputs()
    share = slice(rank * case.batch // ranks, (rank + 1) * case.batch // ranks)
    mine = x[share].clone().requires_grad_()
    head = ShardedHead(
        case.classes, case.dim, case.margin, group, seed=3, options=HeadOptions(block=case.block)
    ).double()
    output = head(mine, labels[share], case.anneal)
    output.loss.backward()
    assert mine.grad is not None and head.weight_SD.grad is not None
    return {
        "loss": output.loss.detach(),
        "x_grad": mine.grad,
        "w_grad": head.weight_SD.grad,
        "rows": head.weight_SD.detach(),
        "cosine": output.own_cosine_G,
        "norm": output.norm_G,
    }


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_sharded_equals_dense(name: str, ranks: int) -> None:
    case = CASES[name]
    results = run_ranks(head_step, ranks, case) if ranks > 1 else [_step(case, None, 0, 1)]
    x, labels = case.inputs()
    x.requires_grad_()
    weight = initial_rows(range(case.classes), case.dim, seed=3).double().requires_grad_()
    loss = dense_loss(x, weight, labels, case.margin.name, case.margin.m, case.anneal)
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


def fp32_step(rank: int, ranks: int, dtype: torch.dtype) -> float:
    case = Case(classes=1001, batch=24, dim=64, block=128)
    group = dist.group.WORLD
    assert (rank, ranks) == (rank_in(group), num_ranks(group))
    x, labels = case.inputs()
    share = slice(rank * case.batch // ranks, (rank + 1) * case.batch // ranks)
    options = HeadOptions(block=case.block, dtype=dtype)
    head = ShardedHead(case.classes, case.dim, case.margin, group, seed=3, options=options)
    first = head(x[share].float(), labels[share], case.anneal).loss
    second = head(x[share].float(), labels[share], case.anneal).loss
    assert torch.equal(first, second), "not repeatable bit for bit"
    return float(first)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_single_precision_is_close_to_float64_and_repeats_bitwise(dtype: torch.dtype, tolerance: float) -> None:
    case = Case(classes=1001, batch=24, dim=64)
    x, labels = case.inputs()
    weight = initial_rows(range(case.classes), case.dim, seed=3).double()
    want = float(dense_loss(x, weight, labels, "a_softmax", 4, case.anneal))
    for got in run_ranks(fp32_step, 2, dtype):
        assert got == pytest.approx(want, rel=tolerance)


def test_one_class_has_no_loss_and_no_gradient() -> None:
    head = ShardedHead(1, 5, Margin("a_softmax", 4))
    x = torch.randn(3, 5, requires_grad=True)
    output = head(x, torch.zeros(3, dtype=torch.int64), 5.0)
    output.loss.backward()
    assert output.loss == 0
    assert x.grad is not None and not x.grad.any()
    assert head.weight_SD.grad is not None and not head.weight_SD.grad.any()


def test_rows_do_not_depend_on_the_split() -> None:
    whole = initial_rows(range(10_000), 3, seed=5)
    parts = [initial_rows(range(a, b), 3, seed=5) for a, b in ((0, 3), (3, 4096), (4096, 8193), (8193, 10_000))]
    assert torch.equal(torch.cat(parts), whole)
    assert whole.abs().max() <= 1
    assert not torch.equal(initial_rows(range(10), 3, seed=6), whole[:10])


def test_streamed_function_passes_gradcheck() -> None:
    generator = torch.Generator().manual_seed(0)
    features, weight = (
        torch.randn(n, 6, dtype=torch.float64, generator=generator, requires_grad=True) for n in (4, 11)
    )
    own = torch.tensor([0, -1, 10, 5])
    for normalise in (False, True):
        assert torch.autograd.gradcheck(
            lambda f, w, normalise=normalise: others_logsumexp(f, w, own, normalise_rows=normalise, block=3),
            (features, weight),
        )


def test_fewer_classes_than_ranks_is_refused() -> None:
    with pytest.raises(AssertionError, match="num_classes: got 1, wanted at least one for each of 2 ranks"):
        run_ranks(_too_few, 2)


def _too_few(rank: int, ranks: int) -> None:  # noqa: ARG001
    ShardedHead(1, 4, Margin("softmax"), dist.group.WORLD)
