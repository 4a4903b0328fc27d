"""Every loss trains on the demo's faces, along the very curve that was kept, to more than the untrained network."""

from __future__ import annotations

import json

import pytest

from pipeline.head.margins import MARGINS
from tests.curves.run import KEYS, STEPS, file_of, network, separation, train


def test_there_is_a_curve_of_every_loss() -> None:
    assert set(KEYS) == {name for name in MARGINS if not name.startswith("toy_")}


@pytest.mark.parametrize("name", KEYS)
def test_it_replays_its_curve_and_separates_people_never_seen(name: str) -> None:
    wanted = json.loads(file_of(name).read_text())
    losses, backbone = train(name)
    assert len(wanted) == STEPS
    # Another processor adds in another order: see `tests.curves.run`.
    assert losses == pytest.approx(wanted, rel=1e-10)
    assert sum(losses[-5:]) < sum(losses[:5]), "it did not learn"
    assert separation(backbone) > separation(network()) + 0.01
