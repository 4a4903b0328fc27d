"""IResNet against an independent float64 forward pass, and the names that published weights have."""

import pytest
import torch
from torch.nn import functional as F

from pipeline.backbones.iresnet import IResNetBackbone

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3), 200: (6, 26, 60, 6)}


def iresnet_reference(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Inference as ArcFace's paper has it, reading InsightFace's names."""

    def norm(x: torch.Tensor, at: str) -> torch.Tensor:
        mean, var, weight, bias = (state[f"{at}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        scale = weight / (var + 1e-5).sqrt()
        shape = (1, -1) + (1,) * (x.dim() - 2)
        return x * scale.view(shape) + (bias - mean * scale).view(shape)

    def prelu(x: torch.Tensor, at: str) -> torch.Tensor:
        return torch.where(x > 0, x, state[f"{at}.weight"][None, :, None, None] * x)

    x = prelu(norm(F.conv2d(x, state["conv1.weight"], padding=1), "bn1"), "prelu")
    for layer in range(1, 5):
        block = 0
        while (at := f"layer{layer}.{block}") + ".conv1.weight" in state:
            stride = 2 if block == 0 else 1
            out = prelu(
                norm(F.conv2d(norm(x, f"{at}.bn1"), state[f"{at}.conv1.weight"], padding=1), f"{at}.bn2"), f"{at}.prelu"
            )
            out = norm(F.conv2d(out, state[f"{at}.conv2.weight"], stride=stride, padding=1), f"{at}.bn3")
            if block == 0:
                x = norm(F.conv2d(x, state[f"{at}.downsample.0.weight"], stride=2), f"{at}.downsample.1")
            x, block = out + x, block + 1
    return norm(norm(x, "bn2").flatten(1) @ state["fc.weight"].T + state["fc.bias"], "features")


@pytest.mark.parametrize("layers", [18, 50])
def test_iresnet_computes_the_paper(layers: int) -> None:
    torch.manual_seed(layers)
    backbone = IResNetBackbone(name=f"iresnet{layers}", embedding_dim=16).build((32, 48)).double().eval()
    for name, tensor in backbone.state_dict().items():
        if tensor.is_floating_point() and tensor.dim() == 1:
            tensor.uniform_(0.5, 1.5) if "var" in name or "bn3.weight" in name else tensor.normal_(0.3, 0.3)
    images = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    torch.testing.assert_close(backbone(images), iresnet_reference(backbone.state_dict(), images), rtol=1e-9, atol=1e-9)


def arcface_torch_shapes(blocks: tuple[int, ...], dim: int, positions: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes in InsightFace's published ``backbone.pth`` files."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(at: str, channels: int) -> None:
        shapes.update({f"{at}.{k}": (channels,) for k in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{at}.num_batches_tracked"] = ()

    shapes |= {"conv1.weight": (64, 3, 3, 3), "prelu.weight": (64,)}
    norm("bn1", 64)
    before = 64
    for layer, (channels, count) in enumerate(zip((64, 128, 256, 512), blocks, strict=True), start=1):
        for block in range(count):
            at = f"layer{layer}.{block}"
            norm(f"{at}.bn1", before)
            shapes[f"{at}.conv1.weight"] = (channels, before, 3, 3)
            norm(f"{at}.bn2", channels)
            shapes[f"{at}.prelu.weight"] = (channels,)
            shapes[f"{at}.conv2.weight"] = (channels, channels, 3, 3)
            norm(f"{at}.bn3", channels)
            if block == 0:
                shapes[f"{at}.downsample.0.weight"] = (channels, before, 1, 1)
                norm(f"{at}.downsample.1", channels)
            before = channels
    norm("bn2", 512)
    shapes |= {"fc.weight": (dim, 512 * positions), "fc.bias": (dim,)}
    norm("features", dim)
    return shapes


@pytest.mark.parametrize("layers", BLOCKS)
def test_weights_published_by_insightface_fit(layers: int) -> None:
    backbone = IResNetBackbone(name=f"iresnet{layers}", embedding_dim=512).build((112, 112))
    shapes = {name: tuple(tensor.shape) for name, tensor in backbone.state_dict().items()}
    assert shapes == arcface_torch_shapes(BLOCKS[layers], 512, 49)
    assert [name for name, p in backbone.named_parameters() if not p.requires_grad] == ["features.weight"]
