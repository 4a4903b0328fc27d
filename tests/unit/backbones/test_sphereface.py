"""SphereFace networks against the authors' prototxt, layer by layer, and their solver's start."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.backbones.sphereface import SphereFace, SphereFaceBackbone

UNITS = {4: (0, 0, 0, 0), 10: (0, 1, 2, 0), 20: (1, 2, 4, 1), 36: (2, 4, 8, 2), 64: (3, 8, 16, 3)}


def sphereface_reference(state: dict[str, torch.Tensor], units: tuple[int, ...], x: torch.Tensor) -> torch.Tensor:
    """The authors' prototxt, layer by layer, on weights taken in the order in which the network lists them."""
    weights = iter(state.values())

    def conv(x: torch.Tensor, stride: int, biased: bool) -> torch.Tensor:
        weight = next(weights)
        bias = next(weights) if biased else None
        out = F.conv2d(x, weight, bias, stride, 1)
        slope = next(weights)[None, :, None, None]
        return torch.where(out > 0, out, slope * out)

    for count in units:
        x = conv(x, 2, True)
        for _ in range(count):
            # addends in this order keep the sum bitwise
            x = x + conv(conv(x, 1, False), 1, False)
    return x.flatten(1) @ next(weights).T + next(weights)


@pytest.mark.parametrize("layers", UNITS)
def test_sphereface_computes_the_prototxt(layers: int) -> None:
    torch.manual_seed(layers)
    backbone = SphereFaceBackbone(name=f"sphereface{layers}", embedding_dim=16).build((32, 48)).double()
    for name, parameter in backbone.named_parameters():
        # Initial biases and equal slopes would hide one that is missing or misplaced.
        nn.init.normal_(parameter, std=0.1) if parameter.dim() == 1 else parameter.data.mul_(3 if "body" in name else 1)
    images = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    expected = sphereface_reference(backbone.state_dict(), UNITS[layers], images)
    torch.testing.assert_close(backbone(images), expected, rtol=1e-10, atol=1e-10)


def test_sphereface_starts_as_the_authors_solver_does() -> None:
    torch.manual_seed(0)
    backbone = SphereFaceBackbone(name="sphereface20").build((112, 96))
    assert isinstance(backbone, SphereFace)
    convs = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    entries: list[nn.Conv2d | nn.Linear] = [backbone.fc, *(c for c in convs if c.stride == (2, 2))]
    for layer in entries:
        bound = math.sqrt(3 / layer.weight[0].numel())
        assert bound * 0.98 < layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert layer.bias is not None and not layer.bias.any()
    units = [c for c in convs if c.stride == (1, 1)]
    assert len(units) == 16
    assert all(c.bias is None and abs(c.weight.std().item() - 0.01) < 2e-4 for c in units)
    assert all((m.weight == 0.25).all() for m in backbone.modules() if isinstance(m, nn.PReLU))
