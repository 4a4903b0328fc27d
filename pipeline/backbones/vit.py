"""Vision transformers T, S, B and L for faces: an embedding from all patches, and no class token.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, as InsightFace's ``arcface_torch`` has them (An et al.,
"Killing Two Birds with One Stone", CVPR 2022): patches of 9 × 9, eight heads, ReLU6, and a layer over all patches.
Names and shapes in the state dict are that project's, so that its published weights load.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.backbones.backbone import BACKBONES, Backbone
from pipeline.backbones.draws import BySample, DropPath

HEADS = 8

# Name -> width, blocks.
SIZES = {"vit_t": (256, 12), "vit_s": (512, 12), "vit_b": (512, 24), "vit_l": (768, 24)}

# On a GPU these repeat bit for bit, and for bfloat16 the scores are not held; the backward pass of the third does not.
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]


class Attention(nn.Module):
    """Every patch looks at every patch: softmax(q kᵀ / √d) v by heads, then a linear layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, patches, width] to the same shape."""
        q, k, v = self.qkv(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        with sdpa_kernel(KERNELS):
            seen = F.scaled_dot_product_attention(q, k, v)
        return self.proj(seen.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers on every patch, four times as wide between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.act = nn.ReLU6()
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, patches, width] to the same shape."""
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """``x + drop(attention(norm(x)))``, then the same with the MLP."""

    def __init__(self, width: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width)
        self.drop1 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width)
        self.drop2 = DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, patches, width] to the same shape."""
        x = x + self.drop1(self.attn(self.norm1(x)))
        return x + self.drop2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """A linear map of every patch; pixels that fill no patch, at the right and at the bottom, are left out."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, stride=patch_size)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] to [B, patches, width]."""
        return self.proj(images).flatten(2).transpose(1, 2)


class Masking(BySample):
    """In training the blocks see a random part of a sample's patches, as in He et al., "MAE", CVPR 2022."""

    def __init__(self, patches: int, ratio: float) -> None:
        super().__init__(patches if ratio > 0 else 0)
        self.kept = int(patches * (1 - ratio))

    def places(self, x: torch.Tensor) -> torch.Tensor | None:
        """Where the patches of x that are seen lie, [B, kept]; None: all are."""
        if not self.training or self.count == 0:
            return None
        return self.drawn(x).argsort(dim=1)[:, : self.kept]


class ViT(nn.Module):
    """Images [B, 3, H, W] to embeddings [B, D], batch-normalised.

    Initial weights come from the global random generator (``torch.manual_seed``), in the order of the layers.

    Args:
        width: of a patch's vector; a multiple of the heads.
        depth: blocks.
        embedding_dim: D; published weights have 512.
        image_size: (H, W) in pixels; published weights have (112, 112).
        patch_size: side of a patch in pixels; published weights have 9.
        drop_path: of the last block; it rises along a line from 0 in the first.
        mask_ratio: share of the patches that the blocks do not see in training.

    Raises:
        ValueError: for images smaller than a patch, and if no patch would be left.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        embedding_dim: int,
        image_size: tuple[int, int],
        patch_size: int,
        drop_path: float,
        mask_ratio: float,
    ) -> None:
        super().__init__()
        patches = (image_size[0] // patch_size) * (image_size[1] // patch_size)
        if patches == 0:
            raise ValueError(f"image_size: got {image_size}, wanted at least {patch_size} × {patch_size}: one patch")
        self.patch_embed = PatchEmbed(width, patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, patches, width))
        self.masking = Masking(patches, mask_ratio)
        if self.masking.kept == 0:
            raise ValueError(f"mask_ratio: got {mask_ratio} of {patches} patches, wanted one that is seen")
        rates = [drop_path * number / max(depth - 1, 1) for number in range(depth)]
        self.blocks = nn.ModuleList(Block(width, rate) for rate in rates)
        self.norm = nn.LayerNorm(width)
        self.feature = nn.Sequential(
            nn.Linear(patches * width, width, bias=False),
            nn.BatchNorm1d(width, eps=2e-5),
            nn.Linear(width, embedding_dim, bias=False),
            nn.BatchNorm1d(embedding_dim, eps=2e-5),
        )
        # A parameter that nothing reads has no gradient to exchange.
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width), requires_grad=mask_ratio > 0)
        for parameter in (self.pos_embed, self.mask_token):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings [B, D] of images [B, 3, H, W] scaled to about [-1, 1]. In training B must be at least 2."""
        x = self.patch_embed(images) + self.pos_embed
        places = self.masking.places(x)
        if places is not None:
            x = x.gather(1, places[:, :, None].expand(-1, -1, x.shape[2]))
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        if places is not None:
            whole = self.mask_token.to(x.dtype).expand(len(x), self.pos_embed.shape[1], -1)
            x = whole.scatter(1, places[:, :, None].expand_as(x), x)
        return self.feature(x.flatten(1))

    def no_weight_decay(self) -> set[str]:
        """Positions, and what stands for a patch that is not seen."""
        return {"pos_embed", "mask_token"}


@BACKBONES.add(*SIZES)
class ViTBackbone(Backbone):
    """A vision transformer as in arcface_torch (An et al., CVPR 2022): small patches, no class token."""

    patch_size: int = Field(9, ge=1)
    """Side of a patch in pixels; published weights have 9."""
    drop_path: float = Field(0.05, ge=0, lt=1)
    """Probability that the last block's branches are left out of a sample in training; it rises from 0 in the first."""
    mask_ratio: float = Field(0.0, ge=0, lt=1)
    """Share of the patches that the blocks do not see in training."""

    def build(self, image_size: tuple[int, int]) -> nn.Module:
        """See `ViT`."""
        width, depth = SIZES[self.name]
        return ViT(width, depth, self.embedding_dim, image_size, self.patch_size, self.drop_path, self.mask_ratio)

    def blocks(self, network: nn.Module) -> Sequence[nn.Module]:
        """Its transformer blocks."""
        return [module for module in network.modules() if isinstance(module, Block)]
