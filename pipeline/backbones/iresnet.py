"""IResNet 18, 34, 50, 100 and 200: residual networks for faces with batch norm before the first convolution of a block.

Deng et al., "ArcFace", CVPR 2019, section 2 (the block after Han et al., CVPR 2017). Names and shapes in the state
dict are those of InsightFace's ``arcface_torch``, so that its published weights load with ``load_state_dict``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from pipeline.backbones.backbone import BACKBONES, Backbone
from pipeline.backbones.size import feature_map

CHANNELS = (64, 128, 256, 512)

# Layers -> blocks of each stage.
BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 14, 3),
    100: (3, 13, 30, 3),
    200: (6, 26, 60, 6),
}


class Block(nn.Module):
    """BN, conv, BN, PReLU, conv, BN, plus the input (through a 1×1 convolution if the shape changes)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.prelu = nn.PReLU(channels)
        # The stride sits on the second convolution, unlike in torchvision's ResNet: the first sees the full map.
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, channels_in, H, W] to [B, channels, ⌈H/stride⌉, ⌈W/stride⌉]."""
        out = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        out = self.bn3(self.conv2(out))
        return out + (x if self.downsample is None else self.downsample(x))


class IResNet(nn.Module):
    """Images [B, 3, H, W] to embeddings [B, D], batch-normalised with the scale held at 1.

    Initial weights come from the global random generator (``torch.manual_seed``), in the order of the layers.

    Args:
        layers: 18, 34, 50, 100 or 200.
        embedding_dim: D; published weights have 512.
        image_size: (H, W) in pixels; published weights have (112, 112).

    Raises:
        ValueError: for another number of layers.
    """

    def __init__(self, layers: int, embedding_dim: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        if layers not in BLOCKS:
            raise ValueError(f"layers: got {layers}, wanted one of {', '.join(map(str, BLOCKS))}")
        first, second, third, fourth = BLOCKS[layers]
        self.conv1 = nn.Conv2d(3, CHANNELS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(CHANNELS[0])
        self.prelu = nn.PReLU(CHANNELS[0])
        self.layer1 = _stage(CHANNELS[0], CHANNELS[0], first)
        self.layer2 = _stage(CHANNELS[0], CHANNELS[1], second)
        self.layer3 = _stage(CHANNELS[1], CHANNELS[2], third)
        self.layer4 = _stage(CHANNELS[2], CHANNELS[3], fourth)
        self.bn2 = nn.BatchNorm2d(CHANNELS[3])
        height, width = feature_map(image_size)
        self.fc = nn.Linear(CHANNELS[3] * height * width, embedding_dim)
        self.features = nn.BatchNorm1d(embedding_dim)
        # The head's scale decides the size of the logits; a learnt one here would compete with it.
        self.features.weight.requires_grad = False
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.1)  # any scale would do: a batch norm follows each

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings [B, D] of images [B, 3, H, W] scaled to about [-1, 1]. In training B must be at least 2."""
        x = self.prelu(self.bn1(self.conv1(images)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.features(self.fc(self.bn2(x).flatten(1)))


@BACKBONES.add(*(f"iresnet{layers}" for layers in BLOCKS))
class IResNetBackbone(Backbone):
    """A residual network as in ArcFace (Deng et al., CVPR 2019) and InsightFace's published weights."""

    def build(self, image_size: tuple[int, int]) -> nn.Module:
        """See `IResNet`."""
        return IResNet(int(self.name.removeprefix("iresnet")), self.embedding_dim, image_size)

    def blocks(self, network: nn.Module) -> Sequence[nn.Module]:
        """Its residual blocks."""
        return [module for module in network.modules() if isinstance(module, Block)]


def _stage(channels_in: int, channels: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(
        Block(channels_in, channels, stride=2), *(Block(channels, channels, stride=1) for _ in range(blocks - 1))
    )
