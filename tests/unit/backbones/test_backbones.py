"""Backbones against their papers' tables, independent float64 forwards and the names that published weights have."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from pipeline.backbones import BACKBONES, build_backbone
from pipeline.backbones.size import activation_bytes, count_macs, feature_map

# name -> image size, million parameters, GMAC: as published, by the table's layer counts and by arcface_torch's README.
PUBLISHED = {
    "sphereface4": ((112, 96), 12.6, 0.16),
    "sphereface10": ((112, 96), 15.2, 0.76),
    "sphereface20": ((112, 96), 22.7, 1.75),
    "sphereface36": ((112, 96), 32.8, 3.34),
    "sphereface64": ((112, 96), 48.2, 6.11),
    "iresnet18": ((112, 112), 24.0, 2.61),
    "iresnet34": ((112, 112), 34.1, 4.46),
    "iresnet50": ((112, 112), 43.6, 6.31),
    "iresnet100": ((112, 112), 65.2, 12.09),
}
UNITS = {4: (0, 0, 0, 0), 10: (0, 1, 2, 0), 20: (1, 2, 4, 1), 36: (2, 4, 8, 2), 64: (3, 8, 16, 3)}
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}


def macs_by_hooks(module: nn.Module, image_size: tuple[int, int]) -> int:
    """Multiply-adds of one image, counted from the outputs of a real forward pass."""
    total = 0

    def count(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * layer.weight[0].numel()

    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        module.eval()(torch.zeros(1, 3, *image_size))
    return total


@pytest.mark.parametrize("name", BACKBONES)
def test_parameters_and_multiply_adds_are_the_published_ones(name: str) -> None:
    image_size, millions, gmacs = PUBLISHED[name]
    backbone = build_backbone(name, 512, image_size)
    assert sum(p.numel() for p in backbone.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
    macs = macs_by_hooks(backbone, image_size)
    assert macs / 1e9 == pytest.approx(gmacs, abs=0.005)
    assert count_macs(backbone, image_size) == macs


@pytest.mark.parametrize("name", BACKBONES)
def test_the_name_is_the_number_of_layers(name: str) -> None:
    backbone = build_backbone(name, 8, (16, 16))
    convs = [n for n, m in backbone.named_modules() if isinstance(m, nn.Conv2d) and "downsample" not in n]
    # IResNet counts its fc, as ResNets do; SphereFace counts convolutions only.
    assert len(convs) + name.startswith("iresnet") == int(re.sub(r"\D", "", name))


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
    backbone = build_backbone(f"sphereface{layers}", 16, (32, 48)).double()
    for name, parameter in backbone.named_parameters():
        # Initial biases and equal slopes would hide one that is missing or misplaced.
        nn.init.normal_(parameter, std=0.1) if parameter.dim() == 1 else parameter.data.mul_(3 if "body" in name else 1)
    images = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    expected = sphereface_reference(backbone.state_dict(), UNITS[layers], images)
    torch.testing.assert_close(backbone(images), expected, rtol=1e-10, atol=1e-10)


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
    backbone = build_backbone(f"iresnet{layers}", 16, (32, 48)).double().eval()
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
    backbone = build_backbone(f"iresnet{layers}", 512, (112, 112))
    shapes = {name: tuple(tensor.shape) for name, tensor in backbone.state_dict().items()}
    assert shapes == arcface_torch_shapes(BLOCKS[layers], 512, 49)
    assert [name for name, p in backbone.named_parameters() if not p.requires_grad] == ["features.weight"]


def test_sphereface_starts_as_the_authors_solver_does() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("sphereface20", 512)
    convs = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    for layer in [backbone.fc, *(c for c in convs if c.stride == (2, 2))]:
        bound = math.sqrt(3 / layer.weight[0].numel())
        assert bound * 0.98 < layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert not layer.bias.any()
    units = [c for c in convs if c.stride == (1, 1)]
    assert len(units) == 16
    assert all(c.bias is None and abs(c.weight.std().item() - 0.01) < 2e-4 for c in units)
    assert all((m.weight == 0.25).all() for m in backbone.modules() if isinstance(m, nn.PReLU))


@pytest.mark.parametrize("name", ["sphereface10", "iresnet18"])
def test_the_same_seed_gives_the_same_weights(name: str) -> None:
    first, second = ({}, {})
    for state in (first, second):
        torch.manual_seed(3)
        state.update(build_backbone(name, 8, (16, 16)).state_dict())
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", ["sphereface20", "iresnet18"])
def test_bf16_autocast_reaches_every_parameter_and_stays_near_fp32(name: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name, 32, (48, 32))
    images = torch.randn(8, 3, 48, 32)
    exact = backbone(images)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = backbone(images)
    rounded.float().square().sum().backward()
    assert F.cosine_similarity(exact, rounded.float()).min() > 0.99
    for key, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.dtype == torch.float32
            assert parameter.grad.isfinite().all(), key


@settings(max_examples=12, deadline=None)
@given(st.tuples(st.integers(1, 70), st.integers(1, 70)), st.sampled_from(["sphereface4", "iresnet18"]))
def test_any_image_size_gives_an_embedding(image_size: tuple[int, int], name: str) -> None:
    backbone = build_backbone(name, 5, image_size)
    assert backbone.eval()(torch.zeros(1, 3, *image_size)).shape == (1, 5)


def test_activations_are_the_maps_that_backward_needs() -> None:
    # Of every stage: the entry's output before and after PReLU, and of a unit those of both convolutions and the sum,
    # less the second PReLU's own output, which only the sum reads.
    maps = [64 * 56 * 48, 128 * 28 * 24, 256 * 14 * 12, 512 * 7 * 6]
    numbers = 3 * 112 * 96 + sum(m * (2 + 4 * units) for m, units in zip(maps, UNITS[20], strict=True))
    backbone = build_backbone("sphereface20", 512)
    assert activation_bytes(backbone, (112, 96)) == 4 * numbers
    assert activation_bytes(backbone, (112, 96), torch.bfloat16) == 2 * numbers


def test_measuring_leaves_the_backbone_as_it_was() -> None:
    backbone = build_backbone("iresnet18", 8, (16, 16)).train()
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    count_macs(backbone, (16, 16))
    activation_bytes(backbone, (16, 16), torch.bfloat16)
    assert backbone.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in backbone.state_dict().items())


def test_wrong_names_and_sizes_say_what_is_wanted() -> None:
    with pytest.raises(ValueError, match=r"backbone: got 'resnet50', wanted one of sphereface4, .*iresnet100$"):
        build_backbone("resnet50", 512)
    with pytest.raises(ValueError, match=r"image_size: got \(0, 96\)"):
        feature_map((0, 96))
