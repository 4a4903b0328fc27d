"""What every optimizer has: slots with names that a checkpoint can hold, a schedule, groups of parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pipeline.optim import OPTIMIZERS, Slot
from pipeline.optim.optimizer import parameter_groups
from pipeline.optim.schedule import learning_rate
from pipeline.optim.sgd import SGD


class Net(nn.Module):
    """Weights, biases, and a scale that is not to decay; one weight is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(1, 2, 3), nn.BatchNorm1d(2), nn.Linear(2, 2)
        self.last.weight.requires_grad = False


class Undecayed(Net):
    def __init__(self, names: set[str]) -> None:
        super().__init__()
        self._names = names

    def no_weight_decay(self) -> set[str]:
        return self._names


def sgd(**keys: Any) -> SGD:
    return SGD(steps=10, learning_rate=0.1, weight_decay=0.01, **keys)


def groups_of(net: nn.Module, optimizer: SGD) -> list[tuple[list[str], float, float]]:
    names = {id(p): name for name, p in net.named_parameters()}
    groups = parameter_groups(net, optimizer)
    return [([names[id(p)] for p in group["params"]], group["weight_decay"], group["rate_factor"]) for group in groups]


def test_weights_and_biases_are_apart_and_what_is_frozen_is_left_out() -> None:
    weights, biases = ["conv.weight", "norm.weight"], ["conv.bias", "norm.bias", "last.bias"]
    assert groups_of(Net(), sgd()) == [(weights, 0.01, 1.0), (biases, 0.01, 1.0)]
    assert groups_of(Net(), sgd(bias_rate_factor=2.0, bias_weight_decay=0.0)) == [
        (weights, 0.01, 1.0),
        (biases, 0.0, 2.0),
    ]


def test_what_the_network_names_has_no_weight_decay() -> None:
    net = Undecayed({"norm.weight", "norm.bias"})
    assert groups_of(net, sgd(bias_rate_factor=2.0)) == [
        (["conv.weight"], 0.01, 1.0),
        (["conv.bias", "last.bias"], 0.01, 2.0),
        (["norm.weight"], 0.0, 1.0),
        (["norm.bias"], 0.0, 2.0),
    ]
    with pytest.raises(ValueError, match=r"no_weight_decay: got \['nrom.weight'\], wanted names of parameters"):
        groups_of(Undecayed({"nrom.weight", "norm.bias"}), sgd())


def test_norms_have_a_weight_decay_of_their_own_if_the_recipe_says_so_and_the_networks_word_comes_first() -> None:
    groups = groups_of(Undecayed({"norm.bias"}), sgd(bias_weight_decay=0.02, norm_weight_decay=0.001))
    assert groups == [
        (["conv.weight"], 0.01, 1.0),
        (["conv.bias", "last.bias"], 0.02, 1.0),
        (["norm.bias"], 0.0, 1.0),
        (["norm.weight"], 0.001, 1.0),
    ]


def test_every_layer_of_torch_that_normalises_is_a_norm() -> None:
    layers = [nn.BatchNorm2d(2), nn.SyncBatchNorm(2), nn.InstanceNorm2d(2, affine=True), nn.LayerNorm(2)]
    with_slopes = nn.BatchNorm2d(2)
    with_slopes.add_module("act", nn.PReLU(2))
    net = nn.Sequential(*layers, nn.GroupNorm(1, 2), nn.RMSNorm(2), nn.PReLU(2), with_slopes)
    (slopes, decay, _), *norms = groups_of(net, sgd(norm_weight_decay=0.0))
    assert (slopes, decay) == (["6.weight", "7.act.weight"], 0.01)
    assert [name for names, _, _ in norms for name in names] == [
        *(f"{layer}.weight" for layer in (*range(6), 7)),
        *(f"{layer}.bias" for layer in (*range(5), 7)),
    ]


@pytest.mark.parametrize("name", ["rows", "backbone", "head", "a.b", ""])
def test_names_that_a_checkpoint_cannot_hold_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"slot: got '{name}', wanted a Python name other than backbone, head, rows"):
        Slot(name, "key")


def test_slots_start_at_zero_in_the_shape_that_they_declare() -> None:
    rows, weight = torch.ones(5, 3, requires_grad=True), torch.ones(2, 4, requires_grad=True)
    shapes = []
    for slot in (Slot("a", "a"), Slot("b", "b", per_number=False)):
        of_rows, of_weight = slot.zeros_for_rows(rows), slot.zeros_for(weight)
        assert not of_rows.any() and not of_weight.any()
        assert not of_rows.requires_grad and not of_weight.requires_grad
        shapes.append((tuple(of_rows.shape), tuple(of_weight.shape)))
    assert shapes == [((5, 3), (2, 4)), ((5,), ())]
    assert Slot("b", "b", per_number=False).zeros_for(weight.to("meta")).is_meta, "it lies where the parameter does"


# Another test of this process may have registered a toy.
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if not name.startswith("toy_")])
def test_every_optimizer_of_the_table_has_slots_of_its_own_names(name: str) -> None:
    slots = OPTIMIZERS[name].slots
    assert len({slot.name for slot in slots}) == len({slot.torch_key for slot in slots}) == len(slots)
    assert OPTIMIZERS[name].slots_per_number() + OPTIMIZERS[name].slots_per_row() == len(slots)


def test_the_rate_is_that_of_the_schedule() -> None:
    stepped, curved = sgd(warmup_steps=3, milestones=(5, 7), decay=0.2), sgd(warmup_steps=2, power=2.0)
    waving = sgd(warmup_steps=2, cosine=True)
    for step in range(10):
        want = learning_rate(step, 0.1, steps=10, warmup_steps=3, milestones=(5, 7), decay=0.2)
        assert stepped.learning_rate_at(step, 7) == want
        assert curved.learning_rate_at(step, 7) == learning_rate(step, 0.1, steps=10, warmup_steps=2, power=2.0)
        assert waving.learning_rate_at(step, 7) == learning_rate(step, 0.1, steps=10, warmup_steps=2, cosine=True)


def test_the_rate_is_in_proportion_to_the_batch_it_is_for_and_that_is_said() -> None:
    for_256, as_it_is = sgd(rate_batch=256, warmup_steps=2), sgd(warmup_steps=2)
    for step in range(10):
        assert for_256.learning_rate_at(step, 1024) == pytest.approx(4 * as_it_is.learning_rate_at(step, 1024))
        assert for_256.learning_rate_at(step, 256) == as_it_is.learning_rate_at(step, 3)
    words = "learning rate 0.4 for a batch of 1,024, in proportion to 0.1 for 256 (optimizer.rate_batch)"
    assert for_256.rate_in_words(1024) == words
    assert for_256.rate_in_words(256) == as_it_is.rate_in_words(256) == "learning rate 0.1 for a batch of 256"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"power": 1.0, "milestones": (3,)}, r"power: got 1.0 with milestones \[3\], wanted one of the two"),
        ({"cosine": True, "power": 2.0}, "cosine: got True with power 2.0, wanted one of the two"),
        ({"milestones": (3, 3)}, r"milestones: got \[3, 3\], wanted rising steps"),
        ({"cosine": True, "milestones": (3,)}, r"cosine: got True with milestones \[3\], wanted one of the two"),
    ],
)
def test_a_rate_falls_in_one_way(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sgd(**keys)
