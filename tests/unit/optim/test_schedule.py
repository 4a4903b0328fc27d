"""The learning rate against loops that count milestones and that go down a little a step."""

from typing import Any

import pytest
import torch

from pipeline.optim.optimizer import RatePhase
from pipeline.optim.schedule import learning_rate
from pipeline.optim.sgd import SGD


def counted(step: int, base: float, warmup: int, milestones: list[int], decay: float) -> float:
    rate = base
    for milestone in milestones:
        if step >= milestone:
            rate *= decay
    return rate * (step + 1) / warmup if step < warmup else rate


@pytest.mark.parametrize("warmup", [0, 1, 10])
@pytest.mark.parametrize("milestones", [[], [16], [5, 16, 24]])
def test_equals_counting(warmup: int, milestones: list[int]) -> None:
    for step in range(40):
        got = learning_rate(step, 0.1, steps=40, warmup_steps=warmup, milestones=milestones, decay=0.1)
        assert got == pytest.approx(counted(step, 0.1, warmup, milestones, 0.1), rel=1e-12)


def test_caffes_multistep_of_the_authors_solver() -> None:
    steps = (0, 15999, 16000, 23999, 24000, 27999)
    rates = [learning_rate(step, 0.1, steps=28000, milestones=(16000, 24000)) for step in steps]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


@pytest.mark.parametrize("warmup", [0, 7])
def test_falls_along_half_a_cosine_as_torchs_scheduler_does(warmup: int) -> None:
    p = torch.nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([p], lr=0.1)
    torchs = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=40 - warmup)
    rates = [learning_rate(step, 0.1, steps=40, warmup_steps=warmup, cosine=True) for step in range(40)]
    for rate in rates[warmup:]:
        assert rate == pytest.approx(torchs.get_last_lr()[0], rel=1e-9)
        sgd.step()
        torchs.step()
    assert rates[:warmup] == pytest.approx([0.1 * (step + 1) / warmup for step in range(warmup)])


@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_falls_along_a_curve_to_zero_at_the_end(warmup: int, power: float) -> None:
    rate = 0.1  # multiplied on from step to step, as arcface_torch's scheduler does it
    for step in range(warmup, 40):
        if step > warmup:
            rate *= ((40 - step) / (40 - step + 1)) ** power
        got = learning_rate(step, 0.1, steps=40, warmup_steps=warmup, power=power)
        assert got == pytest.approx(rate, rel=1e-12)
    if warmup:
        assert learning_rate(0, 0.1, steps=40, warmup_steps=warmup, power=power) == pytest.approx(0.1 / warmup)


@pytest.mark.parametrize("keys", [{"power": 1.0}, {"power": 2.0}, {"cosine": True}])
def test_beyond_the_end_the_rate_stays_at_zero(keys: dict[str, Any]) -> None:
    """As in a trainer of somebody else's, which goes on."""
    for step in (40, 47):
        assert learning_rate(step, 0.1, steps=40, warmup_steps=7, **keys) == pytest.approx(0, abs=1e-12)
        assert SGD(steps=40, learning_rate=0.1, **keys).learning_rate_at(step, 8) == pytest.approx(0, abs=1e-12)


def test_a_phase_begins_the_schedule_anew() -> None:
    phases = (RatePhase(start=10, learning_rate=0.5, warmup_steps=2), RatePhase(start=16, learning_rate=0.2))
    phased = SGD(steps=30, learning_rate=0.1, warmup_steps=3, power=1, phases=phases)
    parts = [
        SGD(steps=10, learning_rate=0.1, warmup_steps=3, power=1),
        SGD(steps=6, learning_rate=0.5, warmup_steps=2, power=1),
        SGD(steps=14, learning_rate=0.2, power=1),
    ]
    want = [part.learning_rate_at(step, 1) for part in parts for step in range(part.steps)]
    assert [phased.learning_rate_at(step, 1) for step in range(30)] == want
    dropping = SGD(
        steps=30, learning_rate=0.1, milestones=(5, 10, 12), phases=(RatePhase(start=10, learning_rate=1.0),)
    )
    rates = [dropping.learning_rate_at(step, 1) for step in (4, 5, 10, 11, 12)]
    assert rates == pytest.approx([0.1, 0.01, 1, 1, 0.1])
