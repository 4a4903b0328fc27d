"""The networks that turn an aligned face into an embedding, by name."""

from __future__ import annotations

from torch import nn

from pipeline.backbones import iresnet, sphereface

BACKBONES = (
    *(f"sphereface{layers}" for layers in sphereface.UNITS),
    *(f"iresnet{layers}" for layers in iresnet.BLOCKS),
)


def build_backbone(name: str, embedding_dim: int, image_size: tuple[int, int] = (112, 96)) -> nn.Module:
    """The backbone `name`: images [B, 3, H, W] of `image_size` (H, W) to embeddings [B, embedding_dim].

    Initial weights come from the global random generator: call ``torch.manual_seed`` first.

    Raises:
        ValueError: for a name that is not in `BACKBONES`.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone: got {name!r}, wanted one of {', '.join(BACKBONES)}")
    family = sphereface.SphereFace if name.startswith("sphereface") else iresnet.IResNet
    layers = int(name.removeprefix("sphereface").removeprefix("iresnet"))
    return family(layers, embedding_dim, image_size)
