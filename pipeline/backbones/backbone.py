"""The table of backbones: a name to the options that it takes in a recipe, and to the network that they describe."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from pipeline.hashing import hash64
from pipeline.section import Choices, NamedSection


class Backbone(NamedSection, ABC):
    """The network from image to embedding.

    A family of networks is one file here: a module, and a section like this one whose further fields are its options.

        @BACKBONES.add("tiny")
        class TinyBackbone(Backbone):
            channels: int = Field(8, ge=1)

            def build(self, image_size: tuple[int, int]) -> nn.Module:
                return Tiny(self.channels, self.embedding_dim, image_size)
    """

    embedding_dim: int = Field(512, ge=1)
    """D."""
    batch_norm: Literal["local", "synchronised"] = "local"
    """Of which images batch norms take mean and variance in training: of a rank's own in a micro-batch, so that another
    number of ranks trains something else; or of all ranks', for two all-reduces a layer and micro-batch."""
    activation_checkpointing: bool = False
    """Keep only the input of each residual block, and compute the block again in the backward pass: a much larger batch
    fits, for about a third more time of the network. The results are the same, bit for bit."""
    compile: bool = False
    """Compile the network with torch.compile: faster steps, for a minute or more at the first start of a host."""

    frozen: tuple[str, ...] = ()
    """Modules of the network that stay as they are, batch norms included: their names, such as layer1 or stages.0."""
    rate_factor: float = Field(1.0, gt=0)
    """The network learns at this multiple of the optimizer's rate, the head's rows at the rate itself."""

    @model_validator(mode="after")
    def _goes_together(self) -> Backbone:
        if self.activation_checkpointing and type(self).blocks is Backbone.blocks:
            raise ValueError(f"activation_checkpointing: got true, wanted false: {self.name} names no blocks")
        if self.activation_checkpointing and self.compile:
            raise ValueError("compile: got true with activation_checkpointing true, wanted one of the two")
        if self.batch_norm == "synchronised" and self.compile:
            raise ValueError(
                "compile: got true with batch_norm synchronised, wanted false: collectives are not compiled"
            )
        return self

    @abstractmethod
    def build(self, image_size: tuple[int, int]) -> nn.Module:
        """The network: images [B, 3, H, W] of `image_size` (H, W), scaled to about [-1, 1], to embeddings [B, D].

        Initial weights come from torch's global generator: call ``torch.manual_seed`` first. In training the network
        may draw from it too (dropout): see `seed_forward`; what is to be the same on any number of ranks draws by
        `pipeline.backbones.draws`. A method ``no_weight_decay() -> set[str]``
        of the network, if it has one, names those of its parameters that take no weight decay.

        Raises:
            ValueError: for an image size that it cannot take.
        """

    def blocks(self, network: nn.Module) -> Sequence[nn.Module]:  # noqa: ARG002 - for those that have some
        """The modules of `network`, none inside another, that `activation_checkpointing` computes again; its own: none.

        They are called with tensors and return one.
        """
        return ()


# Names of InsightFace's ``arcface_torch`` that are not ours.
THEIRS = {
    **{f"r{layers}": f"iresnet{layers}" for layers in (18, 34, 50, 100, 200)},
    "mbf": "mobilefacenet",
    "mbf_large": "mobilefacenet_large",
    "vit_t_dp005_mask0": "vit_t",
    "vit_s_dp005_mask_0": "vit_s",
    "vit_b_dp005_mask_005": "vit_b",
    "vit_l_dp005_mask_005": "vit_l",
}

BACKBONES: Choices[Backbone] = Choices("backbone", elsewhere=THEIRS)


def seed_forward(seed: int, step: int, rank: int, micro_batch: int) -> None:
    """Seed torch's generators, the CPU's and the GPUs', for one forward pass of a micro-batch in training.

    What the network then draws is a function of these four numbers. It is the same in a run that was interrupted, and
    does not depend on what else draws random numbers; ranks and micro-batches draw differently.
    """
    torch.manual_seed(int(hash64(seed, step, rank, micro_batch)[0]))
