"""Synchronised batch norms in one process: values, gradients, statistics and memory of torch's own."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from pipeline.backbones import BACKBONES
from pipeline.backbones.batch_norm import BatchNorm, batch_norms, synchronise

NORMS: dict[str, Callable[[], BatchNorm]] = {
    "images": lambda: nn.BatchNorm2d(3),
    "vectors": lambda: nn.BatchNorm1d(3, eps=1e-3, momentum=0.3),
    "frozen scale": lambda: frozen(nn.BatchNorm2d(3)),
    "no scale": lambda: nn.BatchNorm2d(3, affine=False),
    "no statistics": lambda: nn.BatchNorm2d(3, track_running_stats=False),
    "mean of all batches": lambda: nn.BatchNorm2d(3, momentum=None),
}


def frozen(norm: BatchNorm) -> BatchNorm:
    norm.weight.requires_grad = False
    return norm


def batch(norm: BatchNorm, seed: int = 0, images: int = 5) -> torch.Tensor:
    size = (images, 3) if isinstance(norm, nn.BatchNorm1d) else (images, 3, 4, 2)
    generator = torch.Generator().manual_seed(seed)
    # a mean of 1,000 standard deviations in one channel: sums of squares would cancel in float32
    shift = torch.tensor([0.0, 1000.0, -3.0]).reshape(1, 3, *(1 for _ in size[2:]))
    return torch.randn(*size, generator=generator) + shift


def scaled(norm: BatchNorm) -> BatchNorm:
    if norm.affine:
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([0.5, 2.0, -1.0]))
            norm.bias.copy_(torch.tensor([0.1, 0.0, 5.0]))
    return norm


@pytest.mark.parametrize("kind", NORMS)
def test_it_is_torchs_batch_norm_in_values_gradients_and_statistics(kind: str) -> None:
    plain = scaled(NORMS[kind]()).double()
    ours = copy.deepcopy(plain).float()
    synchronise(ours, None)
    for step in range(3):
        x = batch(plain, step)
        weights = torch.linspace(-1, 2, x.numel()).reshape(x.shape).sin()
        wide, narrow = x.double().requires_grad_(), x.clone().requires_grad_()
        want, got = plain(wide), ours(narrow)
        (want * weights).sum().backward()
        (got * weights).sum().backward()
        # what float32 can hold of a channel around 1,000: 6e-5
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=3e-4)
        torch.testing.assert_close(got[:, 0].double(), want[:, 0], rtol=1e-5, atol=1e-6)
        assert wide.grad is not None and narrow.grad is not None
        torch.testing.assert_close(narrow.grad.double(), wide.grad, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(narrow.grad[:, 0].double(), wide.grad[:, 0], rtol=1e-5, atol=1e-6)
    for (name, value), other in zip(plain.state_dict().items(), ours.state_dict().values(), strict=True):
        torch.testing.assert_close(other.to(value.dtype), value, rtol=1e-5, atol=1e-6, msg=name)
    for (name, p), q in zip(plain.named_parameters(), ours.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None and q.grad is not None:
            torch.testing.assert_close(q.grad.double(), p.grad, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize("kind", NORMS)
def test_its_gradient_is_the_true_one(kind: str) -> None:
    norm = NORMS[kind]().double()
    synchronise(norm, None)
    x = batch(norm).double()
    # finite differences see the rounding of a large mean's square
    x = (x - x.mean(0) + 3).requires_grad_()
    trained = [p for p in norm.parameters() if p.requires_grad]
    assert torch.autograd.gradcheck(lambda x, *_: norm(x), (x, *trained))


def test_evaluation_types_and_names_are_left_alone() -> None:
    norm = nn.BatchNorm2d(3)
    network = nn.Sequential(nn.Conv2d(3, 3, 1), norm, nn.Flatten(), nn.BatchNorm1d(24))
    names = list(network.state_dict())
    x = batch(nn.BatchNorm2d(3))
    network(x)
    want = copy.deepcopy(network).eval()(x)
    synchronise(network, None)
    assert torch.equal(network.eval()(x), want)
    assert list(network.state_dict()) == names
    assert [type(norm) for norm in batch_norms(network)] == [nn.BatchNorm2d, nn.BatchNorm1d]
    # one that is held in evaluation mode stays so, and takes no part
    network.train()
    norm.eval()
    before = copy.deepcopy(norm.state_dict())
    network(x)
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_keeps_the_memory_that_torchs_own_keeps(dtype: torch.dtype) -> None:
    def kept(norm: nn.BatchNorm2d) -> int:
        found: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x = torch.randn(64, 8, 16, 16, dtype=dtype, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            norm(x)
        return sum(found.values())

    ours = nn.BatchNorm2d(8)
    synchronise(ours, None)
    assert kept(ours) == pytest.approx(kept(nn.BatchNorm2d(8)), abs=1000)


def test_a_network_in_bfloat16_is_as_near_to_float32_as_torchs_own() -> None:
    torch.manual_seed(0)
    plain = BACKBONES["iresnet18"](name="iresnet18", embedding_dim=16).build((32, 32))
    ours, exact = copy.deepcopy(plain), copy.deepcopy(plain)
    synchronise(ours, None)
    x, weights = torch.randn(6, 3, 32, 32), torch.randn(6, 16)
    gradients, statistics = [], []
    for network in (exact, plain, ours):
        with torch.autocast("cpu", torch.bfloat16, enabled=network is not exact):
            embeddings = network(x)
        (embeddings.float() * weights).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
        means = [norm.running_mean for norm in batch_norms(network)]
        statistics.append(torch.cat([mean for mean in means if mean is not None]))
        assert all(buffer.dtype in (torch.float32, torch.int64) for buffer in network.buffers())
    for want, of_torch, got in (gradients, statistics):
        assert (got - want).norm() < 1.2 * (of_torch - want).norm()
