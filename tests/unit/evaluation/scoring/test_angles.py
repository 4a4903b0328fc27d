"""Angles within and between people: equal to loops in float64."""

import numpy as np
import pytest

from pipeline.evaluation.scoring import angles as module
from pipeline.evaluation.scoring.angles import class_angles


def degrees(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1))))


def test_equal_to_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 3)
    generator = np.random.default_rng(0)
    identity = np.array([7, 2, 7, 2, 2, 9, 4, 4, 11, 7, 5, 5, 5])  # with gaps; 9 and 11 have one image
    features = generator.normal(size=(13, 5)) + generator.normal(size=(12, 5))[identity] * 2
    found = class_angles(features, identity, [f"p{person:02d}" for person in range(12)])
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    people = [2, 4, 5, 7, 9, 11]
    assert found.names.tolist() == [f"p{person:02d}" for person in people]
    means = {person: unit[identity == person].sum(0) for person in people}
    within, between = [], []
    for c, person in enumerate(people):
        rows = np.flatnonzero(identity == person)
        own = [degrees(unit[i], sum(unit[j] for j in rows if j != i)) for i in rows] if len(rows) > 1 else []
        within += own
        assert found.images[c] == len(rows)
        if own:
            ordered = np.sort(own)
            expected = [np.interp(q * (len(own) - 1), range(len(own)), ordered) for q in (0.05, 0.5, 0.95)]
            np.testing.assert_allclose(found.within[c], expected, atol=1e-9)
        else:
            assert np.isnan(found.within[c]).all()
        others = {other: degrees(means[person], means[other]) for other in people if other != person}
        between += [angle for other, angle in others.items() if other > person]
        nearest = min(others, key=lambda other: others[other])
        assert people[found.neighbour[c]] == nearest
        assert found.nearest[c] == pytest.approx(others[nearest], abs=0.02)
    assert found.within_counts.tolist() == [sum(int(a) == degree for a in within) for degree in range(180)]
    assert found.between_counts.tolist() == [sum(int(a) == degree for a in between) for degree in range(180)]
    assert found.mean_cosine == pytest.approx(np.cos(np.radians(between)).mean(), abs=0.01)
    room = {c: found.nearest[c] - found.within[c, 1] for c in range(4)}
    assert found.worst(3).tolist() == sorted(room, key=lambda c: room[c])[:3]


def test_an_image_does_not_pull_its_mean_to_itself() -> None:
    found = class_angles(np.array([[1.0, 0], [0, 1.0]]), np.array([0, 0]), ["a"])
    np.testing.assert_allclose(found.within[0], 90)
    assert np.isnan(found.nearest[0])
    assert found.between_counts.sum() == 0
    assert np.isnan(found.mean_cosine)
    assert found.worst(5).tolist() == []


def test_a_collapsed_network_has_angles_too() -> None:
    """Rows of zeros have no direction: they are at 90° to everything; equal rows are at none."""
    found = class_angles(np.zeros((4, 3)), np.array([0, 0, 1, 1]), ["a", "b"])
    np.testing.assert_allclose(found.within, 90)
    np.testing.assert_allclose(found.nearest, 90)
    assert found.mean_cosine == pytest.approx(0, abs=0.01)
    same = class_angles(np.ones((4, 3)), np.array([0, 0, 1, 1]), ["a", "b"])
    np.testing.assert_allclose(same.within, 0, atol=1e-5)
    assert same.mean_cosine == pytest.approx(1, abs=0.01)
