"""The head on CUDA: the dense float64 numbers, bit-for-bit repeats, bf16 within its tolerance."""

import pytest
import torch

from pipeline.head.head import HeadOptions, ShardedHead
from pipeline.head.margins import MARGINS
from pipeline.head.rows import initial_rows
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


def test_cuda_repeats_bitwise_when_asked() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        first, second = step(torch.float32, "a_softmax"), step(torch.float32, "a_softmax")
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(first[k], second[k]) for k in ("loss", "x_grad", "w_grad"))
