import numpy as np
import pytest

from pipeline.rendering.pixels.sensor import averaged, brightness, developed, recompressed, resized, smeared
from tests.renderer import needs_renderer

pytestmark = needs_renderer

PICTURE = np.random.default_rng(0).uniform(0.05, 0.9, (24, 20, 3)).astype(np.float32)
EVEN = np.full((24, 20, 3), 0.4, np.float32)


def test_the_mean_of_drawn_pixels_is_the_crops() -> None:
    wanted = PICTURE.astype(np.float64).reshape(12, 2, 10, 2, 3).mean((1, 3))
    assert averaged(PICTURE, 2) == pytest.approx(wanted, abs=1e-6)


def test_blur_and_resizing_leave_an_even_picture_even() -> None:
    assert smeared(EVEN, 1.3, -0.7, 3) == pytest.approx(EVEN, abs=1e-6)
    assert resized(EVEN, 9, 7) == pytest.approx(np.full((9, 7, 3), 0.4), abs=1e-6)


def test_blur_moves_no_light_and_softens() -> None:
    dot = np.zeros((15, 15, 3), np.float32)
    dot[7, 7] = 1
    soft = smeared(smeared(dot, 1.5, 0, 2), 0, 1.5, 2)
    assert soft.sum() == pytest.approx(3, abs=1e-4)
    rows = (soft[:, :, 0].sum(1) * np.arange(15)).sum()
    assert rows == pytest.approx(7, abs=1e-4)
    assert soft.max() < 0.3


@pytest.mark.parametrize("shift", [(1.3, -0.7), (-2.6, 0.0), (0.0, 1.0)])
def test_blur_is_the_mean_of_shifted_pictures(shift: tuple[float, float]) -> None:
    height, width = PICTURE.shape[:2]
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    total = np.zeros(PICTURE.shape)
    for tap in range(-3, 4):
        dx, dy = shift[0] * tap / 3, shift[1] * tap / 3
        for j, tall in ((np.floor(dy), 1 - dy % 1), (np.floor(dy) + 1, dy % 1)):
            for i, wide in ((np.floor(dx), 1 - dx % 1), (np.floor(dx) + 1, dx % 1)):
                row, column = np.clip(rows + int(j), 0, height - 1), np.clip(columns + int(i), 0, width - 1)
                total += tall * wide * PICTURE[row, column]
    assert smeared(PICTURE, *shift, 3) == pytest.approx(total / 7, abs=1e-5)


def test_smaller_and_back_keeps_the_middle() -> None:
    back = resized(resized(PICTURE, 12, 10), 24, 20)
    assert back.mean((0, 1)) == pytest.approx(PICTURE.mean((0, 1)), abs=0.02)
    assert back.std() < PICTURE.std()


def test_more_light_is_brighter_and_grey_has_no_colour() -> None:
    balance = np.ones(3, np.float32)
    ramp = np.linspace(0, 3, 60, dtype=np.float32).reshape(1, 60, 1).repeat(3, 2)
    pixels = developed(ramp, 1.0, 0.5, 1.0, balance, 0.0, np.uint64(1))
    assert (np.diff(pixels[0, :, 0].astype(int)) >= 0).all() and pixels[0, -1, 0] > 200 and pixels[0, 0, 0] == 0
    grey = developed(PICTURE, 1.0, 0.5, 0.0, balance, 0.0, np.uint64(1)).astype(int)
    assert np.ptp(grey, axis=2).max() <= 1


def test_grain_has_its_strength_and_no_bias() -> None:
    levels = np.random.default_rng(1).uniform(0.1, 0.6, (64, 64, 1)).repeat(3, 2).astype(np.float32)
    clean = developed(levels, 1.0, 0.0, 1.0, np.ones(3, np.float32), 0.0, np.uint64(7)).astype(float)
    noisy = developed(levels, 1.0, 0.0, 1.0, np.ones(3, np.float32), 5.0, np.uint64(7)).astype(float)
    assert (noisy - clean).std() == pytest.approx(5, abs=0.4)
    assert (noisy - clean).mean() == pytest.approx(0, abs=0.2)


def test_brightness_is_of_what_is_seen() -> None:
    seen = np.zeros((24, 20), bool)
    seen[:3] = True
    wanted = (PICTURE[:3].astype(np.float64) @ [0.25, 0.65, 0.10]).mean()
    assert brightness(PICTURE, seen) == pytest.approx(wanted, abs=1e-6)
    assert brightness(PICTURE, np.zeros_like(seen)) == 0.2


def test_a_poor_jpeg_changes_more() -> None:
    pixels = developed(PICTURE, 1.0, 0.0, 1.0, np.ones(3, np.float32), 0.0, np.uint64(1))
    poor, good = (np.abs(recompressed(pixels, q).astype(int) - pixels).mean() for q in (30, 95))
    assert poor > good
