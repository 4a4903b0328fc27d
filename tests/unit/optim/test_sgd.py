"""SGD of rows on any part of them against `torch.optim.SGD` and against a float64 loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.head.kernels import FusedUpdate
from pipeline.head.kernels.triton_passes import SgdUpdate
from pipeline.optim.rows import Rows
from pipeline.optim.sgd import SGD


@pytest.mark.parametrize("nesterov", [False, True])
def test_updates_of_parts_are_torchs_sgd(nesterov: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 3, generator=generator)
    ours, theirs = weight.clone(), torch.nn.Parameter(weight.clone())
    optimizer = Rows(ours, SGD(steps=1, learning_rate=1.0, weight_decay=0.01, nesterov=nesterov))
    sgd = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=nesterov)
    for _ in range(4):
        grad = torch.randn(7, 3, generator=generator)
        theirs.grad = grad.clone()
        sgd.step()
        optimizer.update(slice(0, 3), grad[:3].clone(), 0.1)
        optimizer.update(torch.tensor([4, 3, 6, 5]), grad[[4, 3, 6, 5]], 0.1)
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(optimizer.slots["momentum"], sgd.state[theirs]["momentum_buffer"], rtol=1e-6, atol=1e-7)


def updated(rows: slice | torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(5, 2, generator=generator, dtype=torch.float64).to(dtype)
    optimizer = Rows(weight, SGD(steps=1, learning_rate=1.0, momentum=0.7, weight_decay=0.02))
    for rate in (0.3, 0.1):
        optimizer.update(rows, torch.randn(3, 2, generator=generator, dtype=torch.float64).to(dtype), rate)
    return weight, optimizer.slots["momentum"]


@pytest.mark.parametrize("rows", [slice(1, 4), torch.tensor([1, 2, 3])], ids=["slice", "numbers"])
def test_the_update_is_the_equation_and_touches_no_other_row(rows: slice | torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(5, 2, generator=generator, dtype=torch.float64).tolist()
    momentum = [[0.0, 0.0] for _ in range(5)]
    for rate in (0.3, 0.1):
        grad = torch.randn(3, 2, generator=generator, dtype=torch.float64).tolist()
        for row in (1, 2, 3):
            for column in (0, 1):
                pull = grad[row - 1][column] + 0.02 * weight[row][column]
                momentum[row][column] = 0.7 * momentum[row][column] + pull
                weight[row][column] -= rate * momentum[row][column]
    for dtype, precision in ((torch.float64, 1e-14), (torch.float32, 1e-6)):
        got_weight, got_momentum = updated(rows, dtype)
        for got, want in ((got_weight, weight), (got_momentum, momentum)):
            wanted = torch.tensor(want, dtype=torch.float64)
            torch.testing.assert_close(got.double(), wanted, rtol=0, atol=precision)
    assert all(map(torch.equal, updated(rows, torch.float32), updated(rows, torch.float32)))
    assert all(map(torch.equal, updated(slice(1, 4), torch.float32), updated(torch.tensor([1, 2, 3]), torch.float32)))


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_the_fused_update_is_the_same_and_reads_on_the_device_whether_the_step_is_dropped(
    monkeypatch: pytest.MonkeyPatch, momentum: float, nesterov: bool
) -> None:
    sgd = SGD(steps=1, learning_rate=1.0, momentum=momentum, weight_decay=0.02, nesterov=nesterov)
    generator = torch.Generator().manual_seed(2)
    weight, grads = torch.randn(6, 3, generator=generator), torch.randn(3, 6, 3, generator=generator)
    plain = [weight.clone(), torch.zeros(6, 3)]
    for grad in grads:
        sgd.update_rows(plain[0], {"momentum": plain[1]}, grad.clone(), 0.1)

    monkeypatch.setattr(SGD, "fused_on", {"cpu"})  # torch has the kernel for the CPU as well
    fused = [weight.clone(), torch.zeros(6, 3)]
    backbone = nn.Linear(3, 6, bias=False)
    backbone.load_state_dict({"weight": weight.clone()})
    optimizer = sgd.for_backbone([{"params": [backbone.weight], "weight_decay": 0.02, "lr": 0.1}])
    optimizer.state[backbone.weight]["momentum_buffer"] = torch.zeros(6, 3)
    for grad in [grads[0], torch.full((6, 3), torch.nan), *grads[1:]]:
        dropped = grad.isnan().any().float()
        sgd.update_rows_unless(dropped, fused[0], {"momentum": fused[1]}, grad.clone(), 0.1)
        backbone.weight.grad, optimizer.found_inf = grad.clone(), dropped  # type: ignore[attr-defined]
        optimizer.step()
    for got, want in zip(fused, plain if momentum else plain[:1], strict=False):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(backbone.weight.detach(), plain[0], rtol=1e-6, atol=1e-7)
    if momentum:
        momenta = optimizer.state[backbone.weight]["momentum_buffer"]
        torch.testing.assert_close(momenta, plain[1], rtol=1e-6, atol=1e-7)


def test_an_update_that_cannot_be_fused_is_left_out_by_the_host() -> None:
    sgd = SGD(steps=1, learning_rate=1.0)
    weight, momentum, grad = torch.ones(2, 2), torch.zeros(2, 2), torch.full((2, 2), torch.inf)
    sgd.update_rows_unless(torch.ones(()), weight, {"momentum": momentum}, grad, 0.1)
    assert torch.equal(weight, torch.ones(2, 2)) and not momentum.any()
    sgd.update_rows_unless(torch.zeros(()), weight, {"momentum": momentum}, grad.fill_(1), 0.1)
    assert (weight < 1).all()


def test_nesterov_needs_a_momentum() -> None:
    with pytest.raises(ValueError, match=r"nesterov: got true with momentum 0.0, wanted a momentum"):
        SGD(steps=1, learning_rate=1.0, momentum=0, nesterov=True)


def test_the_triton_programs_are_not_given_nesterovs_momentum() -> None:
    for nesterov in (False, True):
        rows = Rows(torch.ones(2, 2), SGD(steps=1, learning_rate=1.0, nesterov=nesterov))
        assert (SgdUpdate.of(FusedUpdate(rows, 0.1)) is None) == nesterov
