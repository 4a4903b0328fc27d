"""From light to pixels: focus, resolution, exposure, tones, grain, and compression before ours."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.rendering.exact.compiling import compiled
from pipeline.rendering.exact.draws import Draws


@dataclass(frozen=True)
class Sensor:
    """A camera's settings for one photograph."""

    exposure: float  # the brightness that the face gets
    contrast: float  # 0 none added
    saturation: float  # 1 as it is
    balance: tuple[float, float, float]  # of the colours
    grain: float  # in levels of 255

    def gain(self, bright: float) -> float:
        """What light is multiplied by for a face of a brightness: a camera sees to it, though not wholly."""
        return self.exposure / (0.75 * bright + 0.055)


PLAIN = Sensor(0.38, 0.5, 1.1, (1.0, 1.0, 1.0), 0.0)


def drawn_sensor(draws: Draws) -> Sensor:
    """A setting as photographs have them."""
    warm, green = draws.normal(0, 0.05), draws.normal(0, 0.02)
    grey = draws.chance(0.03)
    saturation = 0.0 if grey else max(0.2, draws.normal(1.12, 0.22))
    grain = draws.uniform(0, 1)
    return Sensor(
        draws.uniform(0.22, 0.58),
        draws.uniform(0.1, 1.1),
        saturation,
        (1 + warm, 1 + green, 1 - warm),
        7 * grain * grain,
    )


@compiled
def averaged(canvas: NDArray[np.float32], fine: int) -> NDArray[np.float32]:
    """[H, W, 3] the mean of `fine` times `fine` pixels of [H * fine, W * fine, 3] each."""
    height, width = canvas.shape[0] // fine, canvas.shape[1] // fine
    out = np.zeros((height, width, 3), np.float32)
    share = np.float32(1) / np.float32(fine * fine)
    for row in range(height):
        for column in range(width):
            for j in range(fine):
                for i in range(fine):
                    for k in range(3):
                        # A lamp's reflection is brighter than film records.
                        out[row, column, k] += share * min(canvas[row * fine + j, column * fine + i, k], np.float32(3))
    return out


@compiled
def brightness(picture: NDArray[np.float32], seen: NDArray[np.bool_]) -> float:
    """The mean luminance where `seen` [H, W], added in order; 0.2 if nothing is."""
    total, count = 0.0, 0
    for row in range(seen.shape[0]):
        for column in range(seen.shape[1]):
            if seen[row, column]:
                r, g, b = picture[row, column, 0], picture[row, column, 1], picture[row, column, 2]
                total += 0.25 * r + 0.65 * g + 0.10 * b
                count += 1
    return total / count if count else 0.2


@compiled
def smeared(picture: NDArray[np.float32], along: float, down: float, taps: int) -> NDArray[np.float32]:
    """The mean of a picture and of `taps` shifted ones on either side, the furthest by (`along`, `down`) pixels."""
    height, width = picture.shape[:2]
    margin = int(abs(along)) + 2
    # Rows side by side with their ends repeated: no pixel has to ask where the picture ends.
    wide = np.empty((height, (width + 2 * margin) * 3), np.float32)
    for row in range(height):
        for column in range(width + 2 * margin):
            for k in range(3):
                wide[row, column * 3 + k] = picture[row, min(max(column - margin, 0), width - 1), k]
    out = np.zeros((height, width * 3), np.float32)
    share = np.float32(1) / np.float32(2 * taps + 1)
    for row in range(height):
        for tap in range(-taps, taps + 1):
            dx, dy = along * tap / taps, down * tap / taps
            i0, j0 = int(np.floor(dx)), int(np.floor(dy))
            u, v = np.float32(dx - i0), np.float32(dy - j0)
            upper, lower = wide[min(max(row + j0, 0), height - 1)], wide[min(max(row + j0 + 1, 0), height - 1)]
            left, right = upper[(margin + i0) * 3 :], upper[(margin + i0 + 1) * 3 :]
            low_left, low_right = lower[(margin + i0) * 3 :], lower[(margin + i0 + 1) * 3 :]
            if v == 0:
                for n in range(width * 3):
                    out[row, n] += share * (left[n] + u * (right[n] - left[n]))
            else:
                for n in range(width * 3):
                    a = left[n] + u * (right[n] - left[n])
                    b = low_left[n] + u * (low_right[n] - low_left[n])
                    out[row, n] += share * (a + v * (b - a))
    return out.reshape(height, width, 3)


def focused(
    picture: NDArray[np.float32], scale: float, draws: Draws
) -> tuple[NDArray[np.float32], dict[str, str | float]]:
    """A picture as a lens and a number of pixels give it, and how: `scale` of 0 is sharp, 1 as usual."""
    soft = scale * draws.uniform()
    blur = 0.25 + 0.9 * soft * soft
    picture = smeared(smeared(picture, blur, 0.0, 2), 0.0, blur, 2)
    if draws.chance(0.06 * scale):
        picture = smeared(picture, draws.normal(0, 1.5), draws.normal(0, 1.5), 3)
    smaller = 1.0
    if draws.chance(0.22 * scale):
        smaller = draws.uniform(1.2, 3.5)
        height, width = picture.shape[:2]
        picture = resized(resized(picture, int(height / smaller), int(width / smaller)), height, width)
    return picture, {"blur": round(blur, 2), "smaller": round(smaller, 2)}


@compiled
def resized(picture: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """[height, width, 3] bilinearly, with a tent as wide as the larger pixel of the two."""
    rows, columns = picture.shape[:2]
    across = np.empty((rows, width, 3), np.float32)
    out = np.empty((height, width, 3), np.float32)
    for axis in range(2):
        size, new = (columns, width) if axis == 0 else (rows, height)
        scale = size / new
        reach = max(1.0, scale)
        for place in range(new):
            middle = (place + 0.5) * scale - 0.5
            low, high = max(0, int(np.ceil(middle - reach))), min(size - 1, int(np.floor(middle + reach)))
            total = 0.0
            for k in range(low, high + 1):
                total += 1 - abs(k - middle) / reach
            for line in range(rows if axis == 0 else width):
                for channel in range(3):
                    value = 0.0
                    for k in range(low, high + 1):
                        taken = picture[line, k, channel] if axis == 0 else across[k, line, channel]
                        value += (1 - abs(k - middle) / reach) * taken
                    if axis == 0:
                        across[line, place, channel] = value / total
                    else:
                        out[place, line, channel] = value / total
    return out


@compiled
def developed(
    picture: NDArray[np.float32],
    gain: float,
    contrast: float,
    saturation: float,
    balance: NDArray[np.float32],
    grain: float,
    seed: np.uint64,
) -> NDArray[np.uint8]:
    """[H, W, 3] levels of light [H, W, 3]: a shoulder for the bright, a square root for a screen, then contrast."""
    height, width = picture.shape[:2]
    out = np.empty((height, width, 3), np.uint8)
    light = picture.reshape(height, width * 3)
    # Row by row and step by step, so that a processor takes several numbers at once.
    value, grey, noise = np.empty(width * 3), np.empty(width * 3), np.zeros(width * 3)
    weight = np.empty(width * 3, np.float32)
    for n in range(width * 3):
        weight[n] = balance[n % 3]
    state = seed
    for row in range(height):
        for n in range(width * 3):
            bright = light[row, n] * gain * weight[n]
            bright = bright * (1 + bright * 0.16) / (1 + bright * 0.92)
            value[n] = np.sqrt(max(bright, 0.0))
        for column in range(width):
            at = column * 3
            mean = 0.25 * value[at] + 0.65 * value[at + 1] + 0.10 * value[at + 2]
            grey[at] = grey[at + 1] = grey[at + 2] = mean
        if grain > 0:
            for n in range(width * 3):
                state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
                mixed = (state >> np.uint64(33)) ^ (state >> np.uint64(45))
                noise[n] = np.float64((mixed & np.uint64(1023)) + ((mixed >> np.uint64(10)) & np.uint64(1023)))
            for n in range(width * 3):
                noise[n] = grain * (noise[n] / 1023.0 - 1.0) / 255.0 * 2.4
        levels = out[row].reshape(width * 3)
        for n in range(width * 3):
            level = grey[n] + saturation * (value[n] - grey[n])
            level = min(max(level, 0.0), 1.0)
            level += contrast * (level * level * (3 - 2 * level) - level)
            level += noise[n]
            levels[n] = np.uint8(min(max(np.floor(level * 255.0 + 0.5), 0.0), 255.0))
    return out


def recompressed(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """What a JPEG of a quality keeps of an image."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as image:
        return np.asarray(image.convert("RGB"))
