"""MobileFaceNet for phones, and a larger one: separable convolutions between narrow maps, and a depthwise last layer.

Chen et al., "MobileFaceNets", CCBR 2018, as InsightFace's ``arcface_torch`` widens it (``mbf`` and ``mbf_large``).
Names and shapes in the state dict are that project's, so that its published weights load.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from pipeline.backbones.backbone import BACKBONES, Backbone
from pipeline.backbones.size import feature_map

LAST = 512  # channels of the last map


class Shape(NamedTuple):
    """What tells the two apart: residual units of each stage, and the channels of the first map."""

    units: tuple[int, int, int, int]
    channels: int


SHAPES = {"mobilefacenet": Shape((1, 4, 6, 2), 128), "mobilefacenet_large": Shape((2, 8, 12, 4), 256)}


class Conv(nn.Module):
    """Convolution, batch norm and, unless it is `linear`, PReLU."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        linear: bool = False,
    ) -> None:
        super().__init__()
        convolution = nn.Conv2d(channels_in, channels, kernel, stride, padding, groups=groups, bias=False)
        self.layers = nn.Sequential(convolution, nn.BatchNorm2d(channels))
        if not linear:
            self.layers.append(nn.PReLU(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, channels_in, H, W] to [B, channels, H', W']."""
        return self.layers(x)


class Unit(nn.Module):
    """1 × 1 to `wide` channels, 3 × 3 on each of them alone, 1 × 1 back; plus the input if it is residual."""

    def __init__(self, channels_in: int, channels: int, wide: int, stride: int) -> None:
        super().__init__()
        self.residual = stride == 1
        self.layers = nn.Sequential(
            Conv(channels_in, wide),
            Conv(wide, wide, 3, stride, padding=1, groups=wide),
            Conv(wide, channels, linear=True),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, channels_in, H, W] to [B, channels, ⌈H/stride⌉, ⌈W/stride⌉]."""
        return x + self.layers(x) if self.residual else self.layers(x)


class Stage(nn.Module):
    """Residual units one after another."""

    def __init__(self, channels: int, wide: int, units: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(Unit(channels, channels, wide, stride=1) for _ in range(units)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, channels, H, W] to the same shape."""
        return self.layers(x)


class Embedding(nn.Module):
    """A weight for each place of the last map (the paper's global depthwise convolution), then a linear layer."""

    def __init__(self, embedding_dim: int, map_size: tuple[int, int]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Conv(LAST, LAST, map_size, groups=LAST, linear=True),
            nn.Flatten(),
            nn.Linear(LAST, embedding_dim, bias=False),
            nn.BatchNorm1d(embedding_dim),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, 512, H, W] to [B, D]."""
        return self.layers(x)


class MobileFaceNet(nn.Module):
    """Images [B, 3, H, W] to embeddings [B, D], batch-normalised.

    Initial weights come from the global random generator (``torch.manual_seed``), in the order of the layers.

    Args:
        shape: residual units of each stage, and the channels of the first map.
        embedding_dim: D; published weights have 512.
        image_size: (H, W) in pixels; published weights have (112, 112).
    """

    def __init__(self, shape: Shape, embedding_dim: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        (first, second, third, fourth), narrow = shape
        deep = 2 * narrow
        self.layers = nn.ModuleList(
            [
                Conv(3, narrow, 3, stride=2, padding=1),
                # The paper's one depthwise layer, by pairs of channels; the large network has units instead.
                Conv(narrow, narrow, 3, padding=1, groups=64) if first == 1 else Stage(narrow, 128, first),
                Unit(narrow, narrow, 128, stride=2),
                Stage(narrow, 128, second),
                Unit(narrow, deep, 256, stride=2),
                Stage(deep, 256, third),
                Unit(deep, deep, 512, stride=2),
                Stage(deep, 256, fourth),
            ]
        )
        self.conv_sep = Conv(deep, LAST)
        self.features = Embedding(embedding_dim, feature_map(image_size))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings [B, D] of images [B, 3, H, W] scaled to about [-1, 1]. In training B must be at least 2."""
        x = images
        for layer in self.layers:
            x = layer(x)
        return self.features(self.conv_sep(x))


@BACKBONES.add(*SHAPES)
class MobileFaceNetBackbone(Backbone):
    """MobileFaceNet (Chen et al., CCBR 2018) as widened by InsightFace: a network for phones."""

    def build(self, image_size: tuple[int, int]) -> nn.Module:
        """See `MobileFaceNet`."""
        return MobileFaceNet(SHAPES[self.name], self.embedding_dim, image_size)

    def blocks(self, network: nn.Module) -> Sequence[nn.Module]:
        """Its separable units."""
        return [module for module in network.modules() if isinstance(module, Unit)]
