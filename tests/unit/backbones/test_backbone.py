"""The table of backbones: what holds for each of them, and one that is added from outside."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from pipeline.backbones import BACKBONES, Backbone
from pipeline.backbones.backbone import seed_forward
from pipeline.backbones.draws import draw
from pipeline.recipe.file import load_recipe
from pipeline.recipe.schema import Recipe, RecipeError
from tests import tiny_vit  # noqa: F401 - a backbone by name

NAMES = [
    *(f"sphereface{layers}" for layers in (4, 10, 20, 36, 64)),
    *(f"iresnet{layers}" for layers in (18, 34, 50, 100, 200)),
]


@pytest.mark.parametrize("name", NAMES)
def test_the_name_is_the_number_of_layers(name: str) -> None:
    backbone = BACKBONES[name](name=name, embedding_dim=8).build((16, 16))
    convs = [n for n, m in backbone.named_modules() if isinstance(m, nn.Conv2d) and "downsample" not in n]
    # IResNet counts its fc, as ResNets do; SphereFace counts convolutions only. InsightFace calls 198 layers 200.
    layers = {"iresnet200": 198}.get(name, int(re.sub(r"\D", "", name)))
    assert len(convs) + name.startswith("iresnet") == layers


@pytest.mark.parametrize("name", ["sphereface10", "iresnet18", "tiny_vit", "mobilefacenet"])
def test_the_same_seed_gives_the_same_weights(name: str) -> None:
    first: dict[str, torch.Tensor] = {}
    second: dict[str, torch.Tensor] = {}
    for state in (first, second):
        torch.manual_seed(3)
        state.update(BACKBONES[name](name=name, embedding_dim=8).build((16, 16)).state_dict())
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", ["sphereface20", "iresnet18", "tiny_vit", "mobilefacenet"])
def test_bf16_autocast_reaches_every_parameter_and_stays_near_fp32(name: str) -> None:
    torch.manual_seed(0)
    backbone = BACKBONES[name](name=name, embedding_dim=32).build((48, 32))
    images = torch.randn(8, 3, 48, 32)
    draw(backbone, 1, 2, np.arange(8), images.device)
    exact = backbone(images)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = backbone(images)
    rounded.float().square().sum().backward()
    assert F.cosine_similarity(exact, rounded.float()).min() > 0.99
    for key, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.dtype == torch.float32
            assert parameter.grad.isfinite().all(), key


@settings(max_examples=12, deadline=None)
@given(st.tuples(st.integers(1, 70), st.integers(1, 70)), st.sampled_from(["sphereface4", "iresnet18"]))
def test_any_image_size_gives_an_embedding(image_size: tuple[int, int], name: str) -> None:
    backbone = BACKBONES[name](name=name, embedding_dim=5).build(image_size)
    assert backbone.eval()(torch.zeros(1, 3, *image_size)).shape == (1, 5)


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"backbone: got 'resnet50', wanted one of sphereface4, .*iresnet100"):
        BACKBONES["resnet50"]


class Toy(nn.Module):
    """Drops pixels, then projects."""

    def __init__(self, embedding_dim: int, image_size: tuple[int, int], rate: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(rate)
        self.project = nn.Linear(3 * image_size[0] * image_size[1], embedding_dim)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.project(self.dropout(images).flatten(1))


@BACKBONES.add("toy_of_unit_tests")
class ToyBackbone(Backbone):
    """All that a backbone from outside needs: a name, its options and a network."""

    rate: float = Field(0.5, ge=0, lt=1)
    """Share of the pixels that are dropped."""

    def build(self, image_size: tuple[int, int]) -> nn.Module:
        """See `Toy`."""
        return Toy(self.embedding_dim, image_size, self.rate)


def toy_recipe(tmp_path: Path, *changes: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "data: {shards: /shards, global_batch: 8}\n"
        "backbone: {name: toy_of_unit_tests, embedding_dim: 4, rate: 0.25}\n"
        "optimizer: {steps: 1, learning_rate: 0.1}\n"
    )
    return load_recipe(path, list(changes))


def test_a_backbone_from_outside_is_built_from_a_recipe_with_its_options(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path)
    network = recipe.backbone.build((6, 5))
    assert isinstance(network, Toy) and network.dropout.p == 0.25
    assert network(torch.zeros(2, 3, 6, 5)).shape == (2, 4)
    saved = tmp_path / "saved.yaml"
    saved.write_text(recipe.to_yaml())
    assert load_recipe(saved) == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("backbone.rate=1", "backbone.rate: got 1, wanted less than 1"),
        ("backbone.raet=0.1", "backbone.raet: unknown key; did you mean rate?"),
        ("backbone={name: sphereface4, rate: 0.1}", "backbone.rate: unknown key; a key of toy"),
    ],
)
def test_an_option_belongs_to_the_name_that_takes_it(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(RecipeError) as found:
        toy_recipe(tmp_path, change)
    assert message in str(found.value)


def test_what_a_forward_pass_draws_is_a_function_of_seed_step_rank_and_micro_batch() -> None:
    def mask(*numbers: int) -> torch.Tensor:
        seed_forward(*numbers)
        return torch.nn.functional.dropout(torch.ones(1000))

    first = mask(1, 2, 3, 4)
    torch.rand(7)
    assert torch.equal(mask(1, 2, 3, 4), first)
    for other in [(2, 2, 3, 4), (1, 3, 3, 4), (1, 2, 4, 4), (1, 2, 3, 5), (2, 1, 3, 4), (1, 2, 4, 3)]:
        # independent masks of probability one half agree in half of their places
        assert abs((mask(*other) == first).double().mean().item() - 0.5) < 0.08
