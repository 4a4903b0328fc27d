"""Floors of a step: FLOPs and bytes counted by hand, and which of them is the longer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.cards import CARDS, Card
from pipeline.backbones.sphereface import SphereFaceBackbone
from pipeline.optim.sgd import SGD
from pipeline.planning import Job, Network, flops
from pipeline.planning.of_recipe import floors_of
from pipeline.planning.timing import model_flops
from pipeline.planning.utilisation import floors, head_pass_bytes
from pipeline.recipe.schema import Data, Recipe

CARD = Card(bf16=1000.0, tf32=500.0, fp32=100.0, bytes_per_second=1e9)
JOB = Job(classes=30, embedding_dim=4, global_batch=12, ranks=3, block=2048)
NETWORK = Network(parameters=10, activation_bytes=0, macs=7)


def test_model_flops_are_three_products_and_three_passes() -> None:
    by_hand = {"classifier": 3 * 2 * 12 * 10 * 4, "network": 3 * 2 * 7 * 4}
    assert model_flops(JOB, NETWORK) == by_hand
    assert model_flops(replace(JOB, accumulation=2), NETWORK) == by_hand, "of the step, not of a micro-batch"
    # as they are done, the logits are computed twice
    assert flops(JOB, NETWORK) == {**by_hand, "classifier": 4 * 2 * 12 * 10 * 4}


def test_each_part_counts_at_the_peak_of_its_type() -> None:
    head, network = 3 * 2 * 12 * 10 * 4, 3 * 2 * 7 * 4
    assert floors(JOB, NETWORK, CARD).step == pytest.approx((head + network) / 1000)
    assert floors(replace(JOB, bf16=False), NETWORK, CARD).step == pytest.approx(head / 100 + network / 500)


def test_the_heads_floor_is_its_flops_or_its_bytes() -> None:
    assert floors(JOB, NETWORK, CARD).head == pytest.approx(3 * 2 * 12 * 10 * 4 / 1000)
    slow = replace(CARD, bytes_per_second=10.0)
    # rows read twice, their gradient written once: 10 rows of 4 numbers on this rank
    assert floors(JOB, NETWORK, slow).head == pytest.approx(4 * 3 * 10 * 4 / 10)
    assert head_pass_bytes(replace(JOB, accumulation=2)) == 2 * 4 * 3 * 10 * 4
    # ... or rows and momentum updated: 20 bytes a number
    assert head_pass_bytes(replace(JOB, fused_update=True)) == 20 * 10 * 4


def test_floors_of_a_recipe_are_known_on_cards_of_the_table() -> None:
    plan = Recipe(
        data=Data(shards=Path("/shards"), global_batch=12),
        backbone=SphereFaceBackbone(name="sphereface4", embedding_dim=8),
        optimizer=SGD(steps=1, learning_rate=0.1),
        precision="bfloat16",
    )
    h100 = "NVIDIA H100 80GB HBM3"
    whole, part = (floors_of(plan, 1000, 2, (32, 32), h100, rate) for rate in (1.0, 0.25))
    assert whole is not None and part is not None
    assert whole.head == pytest.approx(4 * part.head)
    assert floors_of(plan, 1000, 2, (32, 32), "NVIDIA H100 80GB HBM3 MIG 1g.10gb", 1.0) is None
    assert floors_of(plan, 1000, 2, (32, 32), "a card from outside", 1.0) is None


def test_peaks_are_those_of_dense_products() -> None:
    for name, card in CARDS.items():
        # of these generations a tensor core does twice as many in bf16 as in TF32, and more than in fp32
        assert card.bf16 / card.tf32 == pytest.approx(2, rel=0.02), name
        assert card.tf32 > card.fp32, name
        assert 0.5e12 < card.bytes_per_second < 10e12, name
