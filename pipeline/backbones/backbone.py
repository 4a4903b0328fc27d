"""The table of backbones: a name to the options that it takes in a recipe, and to the network that they describe."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from pydantic import Field
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

    @abstractmethod
    def build(self, image_size: tuple[int, int]) -> nn.Module:
        """The network: images [B, 3, H, W] of `image_size` (H, W), scaled to about [-1, 1], to embeddings [B, D].

        Initial weights come from torch's global generator: call ``torch.manual_seed`` first. In training the network
        may draw from it too (dropout, stochastic depth): see `seed_forward`. A method ``no_weight_decay() -> set[str]``
        of the network, if it has one, names those of its parameters that take no weight decay.

        Raises:
            ValueError: for an image size that it cannot take.
        """


BACKBONES: Choices[Backbone] = Choices("backbone")


def seed_forward(seed: int, step: int, rank: int, micro_batch: int) -> None:
    """Seed torch's generators, the CPU's and the GPUs', for one forward pass of a micro-batch in training.

    What the network then draws is a function of these four numbers. It is the same in a run that was interrupted, and
    does not depend on what else draws random numbers; ranks and micro-batches draw differently.
    """
    torch.manual_seed(int(hash64(seed, step, rank, micro_batch)[0]))
