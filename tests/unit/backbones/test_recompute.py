"""Activation checkpointing changes what is kept, and nothing else: not a bit of losses, gradients and statistics."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from pipeline.backbones import BACKBONES, Backbone
from pipeline.backbones.backbone import seed_forward
from pipeline.backbones.recompute import recompute
from pipeline.backbones.sphereface import SphereFaceBackbone

SIZE = (16, 16)


class Dropping(nn.Module):
    """Blocks that draw random numbers and keep statistics: what a second forward pass could get wrong."""

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*(self._block(3 if block == 0 else 4) for block in range(3)))
        self.fc = nn.Linear(4 * SIZE[0] * SIZE[1], embedding_dim)

    @staticmethod
    def _block(channels: int) -> nn.Sequential:
        return nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Dropout(0.5),
            nn.GELU(),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(images).flatten(1))


@BACKBONES.add("toy_with_blocks")
class DroppingBackbone(Backbone):
    """A backbone from outside that names its blocks."""

    def build(self, image_size: tuple[int, int]) -> nn.Module:
        """See `Dropping`."""
        assert image_size == SIZE
        return Dropping(self.embedding_dim)

    def blocks(self, network: nn.Module) -> Sequence[nn.Module]:
        """Its three."""
        assert isinstance(network, Dropping)
        return list(network.body)


def steps_of(section: Backbone, recomputed: bool) -> dict[str, torch.Tensor]:
    """Embeddings, gradients, parameters and buffers of three steps, and an embedding in evaluation mode."""
    torch.manual_seed(0)
    network = section.build(SIZE)
    if recomputed:
        recompute(section.blocks(network))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    found: dict[str, torch.Tensor] = {}
    for step in range(3):
        seed_forward(1, step, 0, 0)
        embeddings = network(torch.randn(4, 3, *SIZE, generator=torch.Generator().manual_seed(step)))
        optimizer.zero_grad()
        embeddings.square().mean().backward()
        optimizer.step()
        found |= {f"{step} x": embeddings.detach()}
        found |= {f"{step} {name} grad": p.grad for name, p in network.named_parameters() if p.grad is not None}
    with torch.no_grad():
        found["evaluated"] = network.eval()(torch.ones(2, 3, *SIZE))
    return found | {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("name", ["iresnet18", "sphereface10", "mobilefacenet", "toy_with_blocks"])
def test_embeddings_gradients_and_statistics_are_the_same_bit_for_bit(name: str) -> None:
    section = BACKBONES[name](name=name, embedding_dim=6)
    want, got = steps_of(section, recomputed=False), steps_of(section, recomputed=True)
    assert got.keys() == want.keys(), "the names of the state stay"
    assert [key for key in want if not torch.equal(got[key], want[key])] == []


def test_blocks_keep_only_their_input() -> None:
    section = DroppingBackbone(name="toy_with_blocks", embedding_dim=6)
    kept = []
    for recomputed in (False, True):
        network = section.build(SIZE)
        if recomputed:
            recompute(section.blocks(network))
        shapes: list[torch.Size] = []

        def keep(tensor: torch.Tensor, shapes: list[torch.Size] = shapes) -> torch.Tensor:
            shapes.append(tensor.shape)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network(torch.randn(4, 3, *SIZE, requires_grad=True))
        kept.append([shape for shape in shapes if len(shape) == 4 and shape[2:] == SIZE])
    assert len(kept[0]) > 9 and len(kept[1]) == 3


class WithoutBackbone(Backbone):
    """Names no blocks."""

    def build(self, image_size: tuple[int, int]) -> nn.Module:
        """Not called."""
        raise AssertionError(image_size)


@pytest.mark.parametrize(
    ("section", "keys", "message"),
    [
        (WithoutBackbone, {"activation_checkpointing": True}, "wanted false: sphereface4 names no blocks"),
        (SphereFaceBackbone, {"activation_checkpointing": True, "compile": True}, "wanted one of the two"),
        (SphereFaceBackbone, {"batch_norm": "synchronised", "compile": True}, "compile: got true with batch_norm sync"),
    ],
)
def test_what_cannot_be_recomputed_is_refused(section: type[Backbone], keys: dict[str, bool], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        section.model_validate({"name": "sphereface4", **keys})
