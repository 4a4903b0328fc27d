"""IR-18, IR-50 and IR-101 with the names of CVLface and AdaFace, to compare what is loaded from such weights with.

Kim et al., "AdaFace", CVPR 2022, follow Deng et al., "ArcFace", CVPR 2019. They differ from
`pipeline.backbones.iresnet` in the first block, whose shortcut has no convolution because the channels do not change.
"""

from __future__ import annotations

import torch
from torch import nn

from pipeline.backbones.size import feature_map

CHANNELS = (64, 128, 256, 512)
BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 14, 3), 101: (3, 13, 30, 3)}


class Block(nn.Module):
    """BN, conv, BN, PReLU, conv, BN, plus the input, subsampled or through a 1×1 convolution."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        if channels_in != channels:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(channels_in),
            nn.Conv2d(channels_in, channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.PReLU(channels),
            nn.Conv2d(channels, channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, channels_in, H, W] to [B, channels, ⌈H/stride⌉, ⌈W/stride⌉]."""
        result: torch.Tensor = self.res_layer(x) + self.shortcut_layer(x)
        return result


class IR(nn.Module):
    """Images [B, 3, H, W] scaled to [-1, 1] to embeddings [B, D].

    Raises:
        ValueError: for a number of layers that is not in `BLOCKS`.
    """

    def __init__(self, layers: int, embedding_dim: int = 512, image_size: tuple[int, int] = (112, 112)) -> None:
        super().__init__()
        if layers not in BLOCKS:
            raise ValueError(f"layers: got {layers}, wanted one of {', '.join(map(str, BLOCKS))}")
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, CHANNELS[0], 3, 1, 1, bias=False), nn.BatchNorm2d(CHANNELS[0]), nn.PReLU(CHANNELS[0])
        )
        blocks, channels_in = [], CHANNELS[0]
        for channels, count in zip(CHANNELS, BLOCKS[layers], strict=True):
            blocks.append(Block(channels_in, channels, 2))
            blocks += [Block(channels, channels, 1) for _ in range(count - 1)]
            channels_in = channels
        self.body = nn.Sequential(*blocks)
        height, width = feature_map(image_size)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(channels_in),
            nn.Dropout(0.4),
            nn.Flatten(),
            nn.Linear(channels_in * height * width, embedding_dim),
            nn.BatchNorm1d(embedding_dim, affine=False),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings [B, D]."""
        result: torch.Tensor = self.output_layer(self.body(self.input_layer(images)))
        return result
