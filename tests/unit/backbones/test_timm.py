"""timm's networks at its interface: what is asked of it, and what is changed in what it gives.

The package itself imports torchvision, whose wheel does not load beside torch's CPU build.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.backbones import BACKBONES
from pipeline.backbones.draws import DropPath, draw
from pipeline.optim.adamw import AdamW
from pipeline.optim.optimizer import parameter_groups

SIZE = (8, 6)


class TheirDropPath(nn.Module):
    """As ``timm.layers.DropPath``, which draws from torch's generator."""

    def __init__(self, drop_prob: float | None) -> None:
        super().__init__()
        self.drop_prob = drop_prob


class Network(nn.Module):
    """Two blocks with a drop path, a batch norm, and a list that names a parameter of another network."""

    def __init__(
        self, num_classes: int, drop_path_rate: float = 0.0, norm: type[nn.BatchNorm2d] = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 4, 1, 1))
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 1), norm(4))
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(4, 4, 1), TheirDropPath(rate)) for rate in (None, drop_path_rate))
        )
        self.head = nn.Linear(4, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(images) + self.pos_embed).mean((2, 3)))

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "dist_token"}


class NormAct(nn.BatchNorm2d):
    """As ``timm.layers.BatchNormAct2d``, whose forward is another."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `create_model` of a timm that has three networks was asked for."""
    calls: list[dict[str, Any]] = []

    def create_model(name: str, **keys: Any) -> nn.Module:
        calls.append({"name": name, **keys})
        size = keys.pop("img_size", None)
        del keys["pretrained"]
        if size not in (None, SIZE):
            raise AssertionError(f"Input size {size} is odd")
        return Network(**keys, norm=NormAct if name == "with_acts" else nn.BatchNorm2d)

    timm = ModuleType("timm")
    vars(timm).update(
        __version__="1.0",
        is_model=lambda name: name in ("plain", "of_one_size", "with_acts"),
        get_pretrained_cfg=lambda name: SimpleNamespace(fixed_input_size=name == "of_one_size"),
        create_model=create_model,
        layers=SimpleNamespace(DropPath=TheirDropPath),
    )
    monkeypatch.setitem(sys.modules, "timm", timm)
    return calls


def build(name: str, size: tuple[int, int] = SIZE, **keys: Any) -> Any:
    return BACKBONES.parse({"name": name, "embedding_dim": 5, **keys}).build(size)


def test_it_is_asked_for_an_embedding_and_for_an_image_size_only_where_that_is_fixed(asked: list[Any]) -> None:
    build("timm/plain")
    build("timm/of_one_size", drop_path=0.25)
    assert asked == [
        {"name": "plain", "num_classes": 5, "pretrained": False},
        {"name": "of_one_size", "num_classes": 5, "pretrained": False, "drop_path_rate": 0.25, "img_size": SIZE},
    ]


@pytest.mark.usefixtures("asked")
def test_its_drop_paths_draw_by_sample() -> None:
    network = build("timm/plain", drop_path=0.5)
    found = [module for module in network.modules() if isinstance(module, DropPath)]
    assert [module.rate for module in found] == [0.0, 0.5]
    network.stem.eval()  # its batch norm mixes samples
    images = torch.randn(16, 3, *SIZE)
    draw(network, 1, 2, np.arange(16), torch.device("cpu"))
    whole = network(images)
    draw(network, 1, 2, np.arange(8, 16), torch.device("cpu"))
    torch.testing.assert_close(network(images[8:]), whole[8:])
    assert len(whole.unique(dim=0)) < 16, "none was dropped"


@pytest.mark.usefixtures("asked")
def test_its_word_on_weight_decay_counts_as_far_as_there_are_such_parameters() -> None:
    groups = parameter_groups(build("timm/plain"), AdamW(steps=1, learning_rate=0.1))
    (undecayed,) = (group["params"] for group in groups if group["weight_decay"] == 0)
    assert [tuple(p.shape) for p in undecayed] == [(1, 4, 1, 1)]


@pytest.mark.usefixtures("asked")
def test_its_blocks_are_named_for_recomputation() -> None:
    section = BACKBONES.parse({"name": "timm/plain", "activation_checkpointing": True})
    network: Any = section.build(SIZE)
    assert list(section.blocks(network)) == list(network.blocks)
    network.blocks[0].blocks = nn.Sequential(nn.ReLU())  # a part of a block
    network.blocks_beside = nn.ModuleDict({"blocks": nn.ModuleList([nn.ReLU()])})
    assert list(section.blocks(network)) == [*network.blocks, *network.blocks_beside["blocks"]]
    network.blocks = network.blocks_beside = nn.Identity()
    with pytest.raises(ValueError, match="wanted false: timm/plain names no blocks"):
        section.blocks(network)


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize(
    ("name", "size", "keys", "message"),
    [
        ("timm/resnet51", SIZE, {}, r"name: got timm/resnet51, wanted a network of timm 1\.0"),
        ("timm/of_one_size", (7, 7), {}, r"name: got timm/of_one_size of images \(7, 7\): Input size"),
        ("timm/with_acts", SIZE, {"batch_norm": "synchronised"}, "batch_norm: got synchronised, wanted local: .*NormA"),
    ],
)
def test_what_it_does_not_have_is_refused(name: str, size: tuple[int, int], keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, size, **keys)


@pytest.mark.usefixtures("asked")
def test_its_own_batch_norms_may_be_local() -> None:
    assert isinstance(build("timm/with_acts").stem[1], NormAct)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"name: got timm/plain, wanted pip install -e '\.\[timm\]'"):
        build("timm/plain")


def test_a_family_takes_no_other_names() -> None:
    assert "timm/anything" in BACKBONES
    assert "timm" not in BACKBONES and "torch/anything" not in BACKBONES
    with pytest.raises(ValueError, match=r"backbone: got 'torch/anything', wanted one of .*timm/\*"):
        BACKBONES["torch/anything"]
