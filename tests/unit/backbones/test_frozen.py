"""Frozen modules stay as they are in training, whatever is asked of their mode, and bad names are refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.backbones.frozen import freeze
from pipeline.backbones.iresnet import IResNetBackbone
from pipeline.optim.sgd import SGD
from pipeline.recipe.fit import check_against_set
from pipeline.recipe.schema import Data, Recipe, RecipeError

STAYS = ("conv1", "bn1", "prelu", "layer1", "layer2.0")


def test_parameters_statistics_and_mode_stay_and_the_rest_learns() -> None:
    torch.manual_seed(0)
    network = IResNetBackbone(name="iresnet18", embedding_dim=8).build((16, 16))
    freeze(network, STAYS)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.eval()
    network.train()
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    network(torch.randn(4, 3, 16, 16)).square().sum().backward()
    optimizer.step()
    for name, tensor in network.state_dict().items():
        if name.startswith(STAYS) or name == "features.weight":
            assert torch.equal(tensor, before[name]), name
        elif "running_mean" in name:
            assert not torch.equal(tensor, before[name]), name
    learnt = network.state_dict()["layer2.1.conv1.weight"]
    assert not torch.equal(learnt, before["layer2.1.conv1.weight"])
    assert not any(module.training for name, module in network.named_modules() if name.startswith(STAYS))
    assert isinstance(network.layer3, nn.Module)
    assert network.layer3.training


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        (["layr1"], "backbone.frozen: got 'layr1', wanted names of modules: conv1, bn1, prelu, layer1, "),
        ([""], "backbone.frozen: got '', wanted names of modules"),
        (
            ["conv1", "bn1", "prelu", "layer1", "layer2", "layer3", "layer4", "bn2", "fc", "features"],
            "wanted something left that learns",
        ),
    ],
)
def test_names_are_checked_before_the_start(frozen: list[str], message: str) -> None:
    recipe = Recipe(
        data=Data(shards=Path("shards"), global_batch=4),
        backbone=IResNetBackbone(name="iresnet18", embedding_dim=8, frozen=tuple(frozen)),
        optimizer=SGD(steps=1, learning_rate=0.1),
    )
    with pytest.raises(RecipeError, match=re.escape(message)):
        check_against_set(recipe, samples=9, identities=4, image_size=(16, 16), num_ranks=1)
