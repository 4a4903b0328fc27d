"""Backbones on CUDA: the CPU's numbers, and the memory that the planner counts on."""

import pytest
import torch

from pipeline.backbones import BACKBONES
from pipeline.backbones.backbone import seed_forward
from pipeline.backbones.size import activation_bytes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.mark.parametrize("name", ["sphereface20", "iresnet50"])
def test_cuda_equals_cpu(name: str) -> None:
    torch.manual_seed(0)
    backbone = BACKBONES[name](name=name, embedding_dim=64).build((112, 96)).eval()
    images = torch.randn(4, 3, 112, 96)
    with torch.no_grad():
        expected = backbone(images)
        # TF32 keeps 10 bits of a factor; this test is about the network, not the rounding.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            got = backbone.cuda()(images.cuda()).cpu()
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["sphereface20", "iresnet50"])
def test_activations_under_autocast_take_what_was_planned(name: str) -> None:
    backbone = BACKBONES[name](name=name, embedding_dim=512).build((112, 96)).cuda().train()
    images = torch.randn(64, 3, 112, 96, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        backbone(images)  # cuDNN's own workspace is allocated once
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        kept = backbone(images)
        per_image = (torch.cuda.memory_allocated() - before) / len(images)
    del kept
    copies_of_weights = 2 * sum(p.numel() for p in backbone.parameters()) / len(images)
    planned = activation_bytes(backbone, (112, 96), torch.bfloat16) + copies_of_weights
    assert per_image == pytest.approx(planned, rel=0.15)


def test_what_a_forward_pass_draws_is_seeded_on_the_gpu_too() -> None:
    def mask(step: int) -> torch.Tensor:
        seed_forward(1, step, 0, 0)
        return torch.nn.functional.dropout(torch.ones(1000, device="cuda"))

    first = mask(1)
    torch.rand(7, device="cuda")
    assert torch.equal(mask(1), first)
    assert not torch.equal(mask(2), first)
