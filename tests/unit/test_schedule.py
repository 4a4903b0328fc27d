"""The learning rate against a loop that counts milestones."""

import pytest

from pipeline.training.schedule import learning_rate


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
        got = learning_rate(step, 0.1, warmup_steps=warmup, milestones=milestones, decay=0.1)
        assert got == pytest.approx(counted(step, 0.1, warmup, milestones, 0.1), rel=1e-12)


def test_caffes_multistep_of_the_authors_solver() -> None:
    rates = [learning_rate(s, 0.1, milestones=(16000, 24000)) for s in (0, 15999, 16000, 23999, 24000, 27999)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
