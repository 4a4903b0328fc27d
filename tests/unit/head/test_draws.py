"""Numbers drawn on the device are those of the host's hash, and as many small, large and alike as chance has."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import hashing
from pipeline.head import draws
from pipeline.head.draws import normal, uniform

NUMBERS = torch.arange(20_000)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3), st.integers(0, 2**63 - 1))
def test_a_number_is_the_hosts_hash(parts: list[int], number: int) -> None:
    want = hashing.uniform(hashing.hash64(*parts, number))[0]
    assert uniform(torch.tensor([number]), *parts).tolist() == [want]
    got = normal(torch.tensor([number]), *parts).item()
    assert got == pytest.approx(NormalDist().inv_cdf(max(want, 2.0**-54)), rel=1e-9, abs=1e-12)


def test_they_are_normal_and_independent_of_number_step_and_what_else_is_drawn() -> None:
    drawn = normal(NUMBERS, 3, 7, 1).numpy()
    assert np.isfinite(drawn).all()
    assert abs(drawn.mean()) < 4 / len(drawn) ** 0.5
    assert abs(drawn.std() - 1) < 4 / (2 * len(drawn)) ** 0.5
    assert abs((drawn < -1).mean() - NormalDist().cdf(-1)) < 0.01
    others = [normal(NUMBERS + 1, 3, 7, 1), normal(NUMBERS, 3, 8, 1), normal(NUMBERS, 4, 7, 1), uniform(NUMBERS, 3, 7)]
    for other in others:
        assert abs(np.corrcoef(drawn, other.numpy())[0, 1]) < 4 / len(drawn) ** 0.5


def test_the_ends_are_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    for end in (0.0, 1 - 2.0**-53):
        monkeypatch.setattr(draws, "uniform", lambda *_, end=end: torch.tensor([end], dtype=torch.float64))
        assert normal(NUMBERS, 1).isfinite().all()
