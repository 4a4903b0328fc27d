"""Synchronised batch norms in one process: values, gradients, statistics and memory of torch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pipeline.backbones import BACKBONES
from pipeline.backbones.batch_norm import BatchNorm, batch_norms, synchronise

NORMS = {
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
    x = batch(norm).double().requires_grad_()
    trained = [p for p in norm.parameters() if p.requires_grad]
    assert torch.autograd.gradcheck(lambda x, *_: norm(x), (x, *trained))


def test_evaluation_types_and_names_are_left_alone() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Flatten(), nn.BatchNorm1d(24))
    names = list(network.state_dict())
    x = batch(nn.BatchNorm2d(3))
    network(x)
    want = copy.deepcopy(network).eval()(x)
    synchronise(network, None)
    assert torch.equal(network.eval()(x), want)
    assert list(network.state_dict()) == names
    assert [type(norm) for norm in batch_norms(network)] == [nn.BatchNorm2d, nn.BatchNorm1d]
    # one that is held in evaluation mode stays so, and takes no part
    network.train()[1].eval()
    before = network[1].running_mean.clone()
    network(x)
    assert torch.equal(network[1].running_mean, before)


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


def test_a_network_in_bfloat16_stays_near_torchs_own() -> None:
    torch.manual_seed(0)
    plain = BACKBONES["iresnet18"](name="iresnet18", embedding_dim=16).build((32, 32))
    ours = copy.deepcopy(plain)
    synchronise(ours, None)
    x = torch.randn(6, 3, 32, 32)
    for network in (plain, ours):
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = network(x)
        embeddings.float().square().sum().backward()
    ours_grads = torch.cat([p.grad.flatten() for p in ours.parameters() if p.grad is not None])
    want_grads = torch.cat([p.grad.flatten() for p in plain.parameters() if p.grad is not None])
    assert torch.nn.functional.cosine_similarity(ours_grads, want_grads, dim=0) > 0.99
    statistics = [dict(network.named_buffers()) for network in (ours, plain)]
    for name, want in statistics[1].items():
        assert statistics[0][name].dtype == want.dtype
        torch.testing.assert_close(statistics[0][name], want, rtol=0.02, atol=0.02)
