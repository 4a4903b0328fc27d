"""The similarity against slow references, and the crop against exact pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.shards.alignment.similarity import crop, fit_similarity, reference_points


def slow_similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least squares over (a, b, x, y) with the plain design matrix: u = a x - b y + tx, v = b x + a y + ty."""
    rows, values = [], []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[x, -y, 1, 0], [y, x, 0, 1]]
        values += [u, v]
    a, b, tx, ty = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0]
    return np.array([[a, -b, tx], [b, a, ty]])


@given(seed=st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_the_similarity_is_that_of_least_squares(seed: int) -> None:
    chance = np.random.default_rng(seed)
    source, target = chance.normal(0, 50, (5, 2)), chance.normal(0, 50, (5, 2))
    np.testing.assert_allclose(fit_similarity(source, target), slow_similarity(source, target), atol=1e-8)


@given(angle=st.floats(-3, 3), scale=st.floats(0.01, 50), x=st.floats(-500, 500), y=st.floats(-500, 500))
@settings(deadline=None)
def test_a_turned_scaled_and_moved_face_is_carried_back(angle: float, scale: float, x: float, y: float) -> None:
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    target = reference_points(112, 96)
    matrix = fit_similarity(target @ turn.T + (x, y), target)
    np.testing.assert_allclose(matrix[:, :2] @ turn, np.eye(2), atol=1e-9)


def test_no_reflection_is_fitted() -> None:
    target = reference_points(112, 96)
    matrix = fit_similarity(target * (-1, 1), target)
    assert np.linalg.det(matrix[:, :2]) > 0


def test_equal_points_are_no_face() -> None:
    with pytest.raises(ValueError, match="got five equal points, wanted a face"):
        fit_similarity(np.ones((5, 2)), reference_points(112, 96))


def test_reference_points_are_the_published_ones() -> None:
    assert reference_points(112, 96)[2].tolist() == [48.0252, 71.7366]
    np.testing.assert_allclose(reference_points(112, 112), reference_points(112, 96) + np.array([8, 0]))
    with pytest.raises(ValueError, match="size: got 100x100, wanted 112x96 or 112x112"):
        reference_points(100, 100)


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_a_face_in_its_place_is_cut_out_within_rounding() -> None:
    photo = noise(300, 300)
    cut = crop(photo, reference_points(112, 96) + np.array([50, 70]), 112, 96)
    np.testing.assert_allclose(np.asarray(cut), np.asarray(photo, float)[70:182, 50:146], atol=1)


def test_a_face_on_its_side_is_turned_within_rounding() -> None:
    photo = noise(112, 96)
    turned = photo.transpose(Image.Transpose.ROTATE_90)
    x, y = reference_points(112, 96).T
    cut = crop(turned, np.stack([y, 95 - x], axis=1), 112, 96)
    np.testing.assert_allclose(np.asarray(cut), np.asarray(photo, float), atol=1)


@pytest.mark.parametrize("factor", [2, 5])
def test_a_large_face_is_averaged_down(factor: int) -> None:
    small = np.random.default_rng(1).integers(0, 256, (112, 96, 3), dtype=np.uint8)
    # Checkered detail that single pixels would show and an average does not.
    detail = np.indices((112 * factor, 96 * factor)).sum(0)[:, :, None] % 2 * 8 - 4
    large = small.repeat(factor, 0).repeat(factor, 1).astype(int).clip(8, 240) + detail
    landmarks = (reference_points(112, 96) + 0.5) * factor - 0.5
    cut = crop(Image.fromarray(large.astype(np.uint8)), landmarks, 112, 96)
    assert np.abs(np.asarray(cut).astype(int) - small.clip(8, 240)).max() <= (1 if factor % 2 == 0 else 2)


def test_beyond_the_photograph_is_black() -> None:
    cut = np.asarray(crop(Image.new("RGB", (96, 112), "white"), reference_points(112, 96) - (40, 0), 112, 96))
    assert cut[:, :39].max() == 0
    assert cut[:, 41:].min() == 255
