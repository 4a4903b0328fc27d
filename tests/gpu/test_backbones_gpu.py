"""Backbones on the GPU: the CPU's numbers, and the memory that the planner counts on."""

import pytest
import torch

from pipeline.backbones import BACKBONES
from pipeline.backbones.backbone import seed_forward
from pipeline.backbones.size import activation_bytes


@pytest.mark.parametrize("name", ["sphereface20", "iresnet50"])
def test_the_device_equals_the_cpu(device: torch.device, name: str) -> None:
    torch.manual_seed(0)
    backbone = BACKBONES[name](name=name, embedding_dim=64).build((112, 96)).eval()
    images = torch.randn(4, 3, 112, 96)
    with torch.no_grad():
        expected = backbone(images)
        # TF32 keeps 10 bits of a factor; this test is about the network, not the rounding.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            got = backbone.to(device)(images.to(device)).cpu()
    # Relative: an untrained IResNet, whose statistics are no batch's, gives embeddings of any size (1e21 here).
    error = (got.double() - expected.double()).norm(dim=1) / expected.double().norm(dim=1)
    assert error.max() <= 1e-3


@pytest.mark.parametrize("name", ["sphereface20", "iresnet50"])
def test_activations_under_autocast_take_what_was_planned(cuda: torch.device, name: str) -> None:
    backbone = BACKBONES[name](name=name, embedding_dim=512).build((112, 96)).to(cuda).train()
    images = torch.randn(64, 3, 112, 96, device=cuda)
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


def test_what_a_forward_pass_draws_is_seeded_on_the_device_too(device: torch.device) -> None:
    def mask(step: int) -> torch.Tensor:
        seed_forward(1, step, 0, 0)
        return torch.nn.functional.dropout(torch.ones(1000, device=device))

    first = mask(1)
    torch.rand(7, device=device)
    assert torch.equal(mask(1), first)
    assert not torch.equal(mask(2), first)
