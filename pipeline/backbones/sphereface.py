"""SphereFace networks of 4, 10, 20, 36 and 64 layers (Liu et al., CVPR 2017, table 2).

Four stages. A stage is a 3×3 convolution of stride 2, then residual units of two 3×3 convolutions; a PReLU follows
every convolution and there is no batch normalisation. One fully connected layer makes the embedding.
What the paper leaves out is as in the authors' network (wy1iu/sphereface, train/code/sphereface_model.prototxt).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from pipeline.backbones.backbone import BACKBONES, Backbone
from pipeline.backbones.size import feature_map

CHANNELS = (64, 128, 256, 512)

# Layers -> residual units of each stage. The paper counts convolutions, not the fc.
UNITS = {
    4: (0, 0, 0, 0),
    10: (0, 1, 2, 0),
    20: (1, 2, 4, 1),
    36: (2, 4, 8, 2),
    64: (3, 8, 16, 3),
}


class ResidualUnit(nn.Module):
    """``x + PReLU(conv(PReLU(conv(x))))``, the shape of x kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The authors freeze these convolutions' biases at 0, which is to have none.
        first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        for conv in (first, second):
            # So small that a unit starts near the identity: what lets 64 layers train without normalisation.
            nn.init.normal_(conv.weight, std=0.01)
        self.body = nn.Sequential(first, nn.PReLU(channels), second, nn.PReLU(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, channels, H, W] to the same shape."""
        return x + self.body(x)


class SphereFace(nn.Module):
    """Images [B, 3, H, W] to embeddings [B, D], not normalised: A-Softmax keeps ‖x‖.

    Initial weights come from the global random generator (``torch.manual_seed``), in the order of the layers.

    Args:
        layers: 4, 10, 20, 36 or 64.
        embedding_dim: D; the paper has 512.
        image_size: (H, W) in pixels; the paper has (112, 96).

    Raises:
        ValueError: for a number of layers the paper does not have.
    """

    def __init__(self, layers: int, embedding_dim: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        if layers not in UNITS:
            raise ValueError(f"layers: got {layers}, wanted one of {', '.join(map(str, UNITS))}")
        before = (3, *CHANNELS)
        self.stages = nn.Sequential(*(_stage(before[i], CHANNELS[i], units) for i, units in enumerate(UNITS[layers])))
        height, width = feature_map(image_size)
        self.fc = nn.Linear(CHANNELS[-1] * height * width, embedding_dim)
        _xavier(self.fc)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings [B, D] of images [B, 3, H, W] scaled to about [-1, 1]."""
        return self.fc(self.stages(images).flatten(1))


@BACKBONES.add(*(f"sphereface{layers}" for layers in UNITS))
class SphereFaceBackbone(Backbone):
    """A network of SphereFace (Liu et al., CVPR 2017, table 2): its number of layers is in the name."""

    def build(self, image_size: tuple[int, int]) -> nn.Module:
        """See `SphereFace`."""
        return SphereFace(int(self.name.removeprefix("sphereface")), self.embedding_dim, image_size)

    def blocks(self, network: nn.Module) -> Sequence[nn.Module]:
        """Its residual units."""
        return [module for module in network.modules() if isinstance(module, ResidualUnit)]


def _stage(channels_in: int, channels: int, units: int) -> nn.Sequential:
    entry = nn.Conv2d(channels_in, channels, 3, stride=2, padding=1)
    _xavier(entry)
    return nn.Sequential(entry, nn.PReLU(channels), *(ResidualUnit(channels) for _ in range(units)))


def _xavier(layer: nn.Conv2d | nn.Linear) -> None:
    """Caffe's "xavier": uniform within ±√(3 / fan_in) (torch's own xavier averages fan-in and fan-out); bias 0."""
    nn.init.kaiming_uniform_(layer.weight, nonlinearity="linear")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
