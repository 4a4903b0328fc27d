"""The rules by which images enter a template, against a loop in float64 in the words of InsightFace's script."""

from itertools import product

import numpy as np
import pytest

from pipeline.evaluation.scoring.fusion import Fusion

RULES = [f"N{n}D{d}F{f}" for n, d, f in product("01", "01", "012")]


@pytest.mark.parametrize("letters", RULES)
def test_a_rule_equals_its_words(letters: str) -> None:
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(9, 10)).astype(np.float32)
    rows[4] = 0
    score = generator.uniform(size=9)
    found = Fusion.of(letters).features(rows, score)
    for row, weight, got in zip(rows.astype(np.float64), score, found, strict=True):
        image, mirror = row[:5], row[5:]
        expected = {"F0": image, "F1": row, "F2": image + mirror}[letters[4:]]
        if letters[:2] == "N0" and expected.any():
            expected = expected / np.sqrt(np.sum(expected**2))
        if letters[2:4] == "D1":
            expected = weight * expected
        np.testing.assert_allclose(got, expected, atol=1e-12)


def test_a_rule_has_its_letters() -> None:
    assert [str(Fusion.of(letters)) for letters in RULES] == RULES
    assert str(Fusion()) == "N1D0F1"
    for wrong in ("N1D1F3", "N1D1F12"):
        with pytest.raises(ValueError, match=rf"fusion: got '{wrong}', wanted letters such as N1D1F2"):
            Fusion.of(wrong)
