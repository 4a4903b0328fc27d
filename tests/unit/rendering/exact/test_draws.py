import numpy as np
import pytest

from pipeline.rendering.exact.draws import Draws


def test_a_purpose_draws_the_same_whatever_others_draw() -> None:
    alone = [Draws("light", 1, 2, 3).uniform() for _ in range(3)]
    light, pose = Draws("light", 1, 2, 3), Draws("pose", 1, 2, 3)
    among_others = []
    for _ in range(3):
        pose.normal()
        among_others.append(light.uniform())
    assert alone == [among_others[0]] * 3
    assert len(set(among_others)) == 3


def test_every_part_of_the_key_counts() -> None:
    keys = [("a", (1, 2, 3)), ("b", (1, 2, 3)), ("a", (2, 1, 3)), ("a", (1, 2, 4)), ("a", (1, 2))]
    assert len({Draws(purpose, *key).word() for purpose, key in keys}) == len(keys)


def test_numbers_have_their_distribution() -> None:
    draws = Draws("test", 5)
    uniform = np.array([draws.uniform(2, 4) for _ in range(4000)])
    assert uniform.min() >= 2 and uniform.max() < 4
    assert uniform.mean() == pytest.approx(3, abs=0.05)
    normal = 1 + 2 * draws.normals(4000)
    assert normal.mean() == pytest.approx(1, abs=0.15)
    assert normal.std() == pytest.approx(2, abs=0.1)
    assert np.abs(normal - 1).max() < 7


def test_choices_come_by_their_weights() -> None:
    draws = Draws("test", 6)
    found = [draws.choice("abc", (1, 0, 3)) for _ in range(2000)]
    assert found.count("b") == 0
    assert found.count("c") / len(found) == pytest.approx(0.75, abs=0.04)
    assert sum(draws.chance(0.2) for _ in range(2000)) / 2000 == pytest.approx(0.2, abs=0.04)


def test_many_numbers_are_those_that_come_one_by_one() -> None:
    many, single = Draws("test", 7), Draws("test", 7)
    assert many.uniforms(5).tolist() == [single.uniform() for _ in range(5)]
    assert many.normals(50).tolist() == [single.normal() for _ in range(50)]
    assert many.word() == single.word()
