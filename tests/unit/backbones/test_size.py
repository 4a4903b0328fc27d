"""The numbers that the planner counts on: parameters, multiply-adds and activations of each backbone."""

import pytest
import torch
from torch import nn

from pipeline.backbones import BACKBONES
from pipeline.backbones.iresnet import IResNetBackbone
from pipeline.backbones.size import activation_bytes, count_macs, feature_map
from pipeline.backbones.sphereface import SphereFaceBackbone
from pipeline.backbones.vit import Attention, ViTBackbone

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
    "iresnet200": ((112, 112), 118.8, 23.42),
    "vit_t": ((112, 112), 19.1, 1.50),
    "vit_s": ((112, 112), 76.0, 5.75),
    "vit_b": ((112, 112), 113.8, 11.44),
    "vit_l": ((112, 112), 255.7, 25.34),
    "mobilefacenet": ((112, 112), 2.1, 0.44),
    "mobilefacenet_large": ((112, 112), 6.3, 1.82),
}
UNITS = {4: (0, 0, 0, 0), 10: (0, 1, 2, 0), 20: (1, 2, 4, 1), 36: (2, 4, 8, 2), 64: (3, 8, 16, 3)}


def macs_by_hooks(module: nn.Module, image_size: tuple[int, int]) -> int:
    """Multiply-adds of one image, counted from the shapes of the layers' outputs in a forward pass."""
    total = 0

    def count(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(layer, Attention):  # besides its linear layers: scores of all pairs of patches, and their sums
            total += 2 * output.numel() * output.shape[1]
            return
        assert isinstance(layer.weight, torch.Tensor)
        total += output.numel() * layer.weight[0].numel()

    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | Attention):
            layer.register_forward_hook(count)
    with torch.no_grad():
        module.eval()(torch.zeros(1, 3, *image_size, device="meta"))
    return total


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_multiply_adds_are_the_published_ones(name: str) -> None:
    image_size, millions, gmacs = PUBLISHED[name]
    with torch.device("meta"):
        backbone = BACKBONES[name](name=name, embedding_dim=512).build(image_size)
    assert sum(p.numel() for p in backbone.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
    macs = macs_by_hooks(backbone, image_size)
    assert macs / 1e9 == pytest.approx(gmacs, abs=0.005)
    assert count_macs(backbone, image_size) == macs


def test_activations_are_the_maps_that_backward_needs() -> None:
    # Of every stage: the entry's output before and after PReLU, and of a unit those of both convolutions and the sum,
    # less the second PReLU's own output, which only the sum reads.
    maps = [64 * 56 * 48, 128 * 28 * 24, 256 * 14 * 12, 512 * 7 * 6]
    numbers = 3 * 112 * 96 + sum(m * (2 + 4 * units) for m, units in zip(maps, UNITS[20], strict=True))
    backbone = SphereFaceBackbone(name="sphereface20").build((112, 96))
    assert activation_bytes(backbone, (112, 96)) == 4 * numbers
    assert activation_bytes(backbone, (112, 96), torch.bfloat16) == 2 * numbers


def test_with_recomputed_blocks_they_keep_their_input_and_the_largest_all() -> None:
    maps = [64 * 56 * 48, 128 * 28 * 24, 256 * 14 * 12, 512 * 7 * 6]
    section = SphereFaceBackbone(name="sphereface20")
    inputs = 3 * 112 * 96 + sum(m * (2 + units) for m, units in zip(maps, UNITS[20], strict=True))
    largest = 3 * maps[0]  # both convolutions' outputs, and the first PReLU's
    assert activation_bytes(section.build((112, 96)), (112, 96), blocks=section.blocks) == 4 * (inputs + largest)


def test_a_transformer_under_autocast_keeps_no_scores_and_float32_between_its_layers() -> None:
    patches, width = 144, 256
    # Float32: both layer norms' inputs. bfloat16: their outputs, q, k and v, what is seen, and of the MLP the hidden
    # layer before and after its ReLU6. Besides a number for each head's softmax, and the norms' two.
    block = patches * (4 * 2 * width + 2 * (2 + 3 + 1 + 4 + 4) * width + 4 * 8 + 4 * 2 * 2)
    last = patches * (4 + 2) * width  # the last norm's input, and what the layer over all patches takes
    backbone = ViTBackbone(name="vit_t").build((112, 112))
    planned = activation_bytes(backbone, (112, 112), torch.bfloat16)
    assert planned == pytest.approx(12 * block + last + 2 * 3 * 112 * 112, rel=1e-3)
    inputs = 12 * patches * 4 * width
    again = activation_bytes(backbone, (112, 112), torch.bfloat16, ViTBackbone(name="vit_t").blocks)
    assert again == pytest.approx(inputs + block - patches * 4 * width + last + 2 * 3 * 112 * 112, rel=2e-3)


def test_measuring_leaves_the_backbone_as_it_was() -> None:
    backbone = IResNetBackbone(name="iresnet18", embedding_dim=8).build((16, 16)).train()
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    count_macs(backbone, (16, 16))
    activation_bytes(backbone, (16, 16), torch.bfloat16)
    assert backbone.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in backbone.state_dict().items())


def test_an_image_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image_size: got \(0, 96\)"):
        feature_map((0, 96))
