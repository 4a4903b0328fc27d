"""A vision transformer small enough to train in a test."""

from __future__ import annotations

from torch import nn

from pipeline.backbones import BACKBONES
from pipeline.backbones.vit import ViT, ViTBackbone


@BACKBONES.add("tiny_vit")
class TinyViTBackbone(ViTBackbone):
    """All of a `ViT` but its size: 3 blocks, 32 wide."""

    def build(self, image_size: tuple[int, int]) -> nn.Module:
        """See `ViT`."""
        return ViT(32, 3, self.embedding_dim, image_size, self.patch_size, self.drop_path, self.mask_ratio)
