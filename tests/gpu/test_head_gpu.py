"""The head on CUDA: the dense float64 numbers, bit-for-bit repeats, every option as the block loop has it."""

from typing import Any

import pytest
import torch

from pipeline.head.head import HeadOptions, ShardedHead
from pipeline.head.kernels import BlockLoop
from pipeline.head.margins import MARGINS
from pipeline.head.rows import initial_rows
from pipeline.optim.sgd import SGD
from tests.distributed.dense import dense_loss

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

CLASSES, BATCH, DIM = 5003, 48, 64


def step(dtype: torch.dtype, name: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = (torch.randn(BATCH, DIM, generator=generator) * 3).cuda().requires_grad_()
    labels = torch.randint(0, CLASSES, (BATCH,), generator=generator).cuda()
    head = ShardedHead(CLASSES, DIM, MARGINS.parse(name), seed=2, options=HeadOptions(dtype=dtype, block=512)).cuda()
    loss = head(x, labels, 5.0).loss
    loss.backward()
    assert x.grad is not None and head.weight_SD.grad is not None
    return {"x": x, "labels": labels, "loss": loss.detach(), "x_grad": x.grad, "w_grad": head.weight_SD.grad}


@pytest.mark.parametrize("name", ["softmax", "modified_softmax", "a_softmax"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_cuda_equals_dense_float64(name: str, dtype: torch.dtype, tolerance: float) -> None:
    got = step(dtype, name)  # torch's default for float32 products on CUDA is float32, not TF32
    x = got["x"].detach().cpu().double().requires_grad_()
    rows = initial_rows(range(CLASSES), DIM, 2).double().requires_grad_()
    loss = dense_loss(x, rows, got["labels"].cpu(), MARGINS.parse(name), 5.0)
    loss.backward()
    torch.testing.assert_close(got["loss"].cpu().double(), loss.detach(), rtol=tolerance, atol=0)
    for key, want in (("x_grad", x.grad), ("w_grad", rows.grad)):
        assert want is not None
        error = (got[key].cpu().double() - want).norm() / want.norm()
        assert error <= tolerance * 2, f"{key}: relative error {error:.2e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cuda_repeats_bit_for_bit(dtype: torch.dtype) -> None:
    first, second = step(dtype, "a_softmax"), step(dtype, "a_softmax")
    assert all(torch.equal(first[k], second[k]) for k in ("loss", "x_grad", "w_grad"))


def train(options: HeadOptions, parts: int, dim: int) -> dict[str, torch.Tensor]:
    """Five steps: the first runs, the second is captured, the rest are replayed."""
    sgd = SGD(steps=5, learning_rate=0.1, weight_decay=5e-4)
    margin = MARGINS.parse("sphereface_r_v2")
    head = ShardedHead(CLASSES, dim, margin, seed=2, optimizer=sgd, options=options, device=torch.device("cuda"))
    generator = torch.Generator().manual_seed(1)
    losses = []
    for number in range(5):
        x = torch.randn(BATCH, dim, generator=generator).cuda()
        labels = torch.randint(-1, CLASSES, (BATCH,), generator=generator).cuda()
        for x_part, labels_part in zip(x.chunk(parts), labels.chunk(parts), strict=True):
            loss = head(x_part.requires_grad_(), labels_part, step=number, learning_rate=0.1).loss
            (loss / parts).backward()
            losses.append(loss.detach())
        head.update(0.1)
    return {"rows": head.weight_SD.detach(), "momentum": head.slots["momentum"], "losses": torch.stack(losses)}


WAYS: dict[str, tuple[dict[str, Any], int]] = {
    "plain": ({}, 1),
    "accumulated": ({}, 2),
    "fused": ({"fused_update": True}, 1),
    "sampled": ({"sample_rate": 0.3}, 1),
    "sampled and fused": ({"sample_rate": 0.3, "fused_update": True}, 1),
}


@pytest.mark.parametrize("dim", [64, 96])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)], ids=str)
def test_every_option_is_the_block_loops_and_repeats(dtype: torch.dtype, tolerance: float, way: str, dim: int) -> None:
    chosen, parts = WAYS[way]
    got, again = (train(HeadOptions(dtype=dtype, block=512, **chosen), parts, dim) for _ in range(2))
    want = train(HeadOptions(kernel=BlockLoop(), **chosen), parts, dim)
    for key, value in want.items():
        assert torch.equal(got[key], again[key])
        error = (got[key] - value).norm() / value.norm()
        assert error <= tolerance, f"{key}: relative error {error:.2e}"
