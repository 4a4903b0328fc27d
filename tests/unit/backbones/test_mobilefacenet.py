"""MobileFaceNet against an independent float64 forward pass, and the names that published weights have."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pipeline.backbones.mobilefacenet import SHAPES, MobileFaceNetBackbone, Unit

EPS = 1e-5
# Name -> units of each stage, channels of the first map.
PUBLISHED = {"mobilefacenet": ((1, 4, 6, 2), 128), "mobilefacenet_large": ((2, 8, 12, 4), 256)}


def reference(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Inference by arcface_torch's names; what a convolution is shows in its kernel's shape and in its stage."""

    def norm(x: torch.Tensor, at: str) -> torch.Tensor:
        mean, var, weight, bias = (state[f"{at}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        scale = weight / (var + EPS).sqrt()
        shape = (1, -1) + (1,) * (x.dim() - 2)
        return x * scale.view(shape) + (bias - mean * scale).view(shape)

    def conv(x: torch.Tensor, at: str, stride: int = 1, padding: int | None = None) -> torch.Tensor:
        kernel = state[f"{at}.layers.0.weight"]
        padding = kernel.shape[2] // 2 if padding is None else padding
        x = F.conv2d(x, kernel, stride=stride, padding=padding, groups=x.shape[1] // kernel.shape[1])
        x = norm(x, f"{at}.layers.1")
        if (slope := state.get(f"{at}.layers.2.weight")) is not None:
            x = torch.where(x > 0, x, slope.view(1, -1, 1, 1) * x)
        return x

    def unit(x: torch.Tensor, at: str, stride: int) -> torch.Tensor:
        return conv(conv(conv(x, f"{at}.layers.0"), f"{at}.layers.1", stride), f"{at}.layers.2")

    for layer in range(8):
        if f"layers.{layer}.layers.0.weight" in state:
            x = conv(x, f"layers.{layer}", stride=2 if layer == 0 else 1)
        elif f"layers.{layer}.layers.0.layers.0.weight" in state:
            x = unit(x, f"layers.{layer}", stride=2)
        else:
            number = 0
            while f"layers.{layer}.layers.{number}.layers.0.layers.0.weight" in state:
                x = x + unit(x, f"layers.{layer}.layers.{number}", stride=1)
                number += 1
    x = conv(conv(x, "conv_sep"), "features.layers.0", padding=0)
    return norm(x.flatten(1) @ state["features.layers.2.weight"].T, "features.layers.3")


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_computes_what_arcface_torch_does(name: str) -> None:
    torch.manual_seed(0)
    network = MobileFaceNetBackbone(name=name, embedding_dim=7).build((40, 56)).double().eval()
    for key, tensor in network.state_dict().items():
        if tensor.is_floating_point() and tensor.dim() == 1:
            tensor.uniform_(0.5, 1.5) if "var" in key else tensor.normal_(0.5, 0.3)
    images = torch.randn(2, 3, 40, 56, dtype=torch.float64)
    torch.testing.assert_close(network(images), reference(network.state_dict(), images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_starts_as_arcface_torch_does_and_its_units_are_computed_again_one_by_one(name: str) -> None:
    """Kaiming's normal distribution by what leaves a layer: fewer channels leave a unit than are inside."""
    torch.manual_seed(0)
    section = MobileFaceNetBackbone(name=name)
    network = section.build((56, 56))
    for key, p in network.named_parameters():
        if p.dim() > 1 and p.numel() > 1000:
            leaving = p.shape[0] * p[0, 0].numel()
            assert float(p.detach().std()) == pytest.approx((2 / leaving) ** 0.5, rel=0.1), key
    units = PUBLISHED[name][0]
    assert len(section.blocks(network)) == sum(units) + 3 - (units[0] == 1)  # three halve the map; or one convolution
    assert {type(block) for block in section.blocks(network)} == {Unit}


def arcface_torch_shapes(units: tuple[int, ...], narrow: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes in that project's ``model.pt`` of ``mbf`` and ``mbf_large``, for images of 112 × 112."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(at: str, channels: int) -> None:
        shapes.update({f"{at}.{key}": (channels,) for key in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{at}.num_batches_tracked"] = ()

    def conv(at: str, *kernel: int, linear: bool = False) -> None:
        shapes[f"{at}.layers.0.weight"] = kernel
        norm(f"{at}.layers.1", kernel[0])
        if not linear:
            shapes[f"{at}.layers.2.weight"] = kernel[:1]

    def unit(at: str, before: int, after: int, wide: int) -> None:
        conv(f"{at}.layers.0", wide, before, 1, 1)
        conv(f"{at}.layers.1", wide, 1, 3, 3)
        conv(f"{at}.layers.2", after, wide, 1, 1, linear=True)

    deep = 2 * narrow
    conv("layers.0", narrow, 3, 3, 3)
    if units[0] == 1:
        conv("layers.1", narrow, narrow // 64, 3, 3)
    else:
        for number in range(units[0]):
            unit(f"layers.1.layers.{number}", narrow, narrow, 128)
    for layer, before, after, wide in ((2, narrow, narrow, 128), (4, narrow, deep, 256), (6, deep, deep, 512)):
        unit(f"layers.{layer}", before, after, wide)
        for number in range(units[layer // 2]):
            unit(f"layers.{layer + 1}.layers.{number}", after, after, 128 if layer == 2 else 256)
    conv("conv_sep", 512, deep, 1, 1)
    conv("features.layers.0", 512, 1, 7, 7, linear=True)
    shapes["features.layers.2.weight"] = (512, 512)
    norm("features.layers.3", 512)
    return shapes


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_of_arcface_torch_fit(name: str) -> None:
    assert SHAPES.keys() == PUBLISHED.keys()
    with torch.device("meta"):
        network = MobileFaceNetBackbone(name=name).build((112, 112))
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    assert shapes == arcface_torch_shapes(*PUBLISHED[name])
