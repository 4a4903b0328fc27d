"""The input of a network: exact for every order, mean and scale, and refused where something is unknown."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.evaluation.embedding.feeding import Feeding, Given, of_description, read_description

PIXELS = torch.arange(256 * 3, dtype=torch.float32).reshape(1, 3, 16, 16) % 256


def decoded(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels - 127.5) / 128


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
@pytest.mark.parametrize(
    ("mean", "scale"),
    [((127.5,), (1 / 128,)), ((127.5,), (1 / 127.5,)), ((0.0,), (1.0,)), ((1.0, 2.0, 3.0), (0.5, 1.0, 2.0))],
)
def test_numbers_are_those_of_the_pixels(channels: str, mean: tuple[float, ...], scale: tuple[float, ...]) -> None:
    found = Feeding(16, 16, channels, mean, scale).apply(decoded(PIXELS))
    ordered = PIXELS if channels == "RGB" else PIXELS[:, [2, 1, 0]]
    means, scales = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (mean, scale))
    torch.testing.assert_close(found, (ordered - means) * scales, rtol=0, atol=0)


def test_raw_pixels_channels_last() -> None:
    found = Feeding(16, 16, "RGB", (0.0,), (1.0,), "NHWC", "uint8").apply(decoded(PIXELS))
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found.numpy(), PIXELS.permute(0, 2, 3, 1).numpy())


def test_the_own_input_is_passed_on_untouched() -> None:
    images = decoded(PIXELS)
    assert Feeding(16, 16).apply(images) is images


def test_a_description_says_what_it_was_made_of() -> None:
    feeding = Feeding(112, 96, "BGR", (1.0, 2.0, 3.0), (0.5,), "NHWC", "uint8")
    assert of_description(json.loads(json.dumps(feeding.described()))).feeding("x") == feeding


def test_flags_go_before_what_a_file_says() -> None:
    known = Given(channels="BGR").filled(Given((4, 4), "RGB", (0.0,), (1.0,)))
    assert known.feeding("x") == Feeding(4, 4, "BGR", (0.0,), (1.0,))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Given(), r"net: got no size of the input, wanted it in its metadata, .* or as --size 112x112"),
        (Given((4, 4)), r"net: got no mean of the input"),
        (Given((4, 4), mean=(0.0,)), r"net: got no scale of the input"),
        (Given((4, 4), "RBG", (0.0,), (1.0,)), r"net: channels: got 'RBG', wanted one of RGB, BGR"),
        (Given((4, 4), None, (0.0, 1.0), (1.0,)), r"net: mean: got \[0.0, 1.0\], wanted one number or three"),
        (Given((4, 4), None, (0.0,), (float("nan"),)), r"net: scale: got \[nan\]"),
    ],
)
def test_an_unknown_input_is_refused(given: Given, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        given.feeding("net")


def test_a_json_that_is_no_description_is_named(tmp_path: Path) -> None:
    assert read_description(tmp_path / "none.json") == Given()
    for text in ("{", "[]", "{}", '{"input": {"height": "x", "width": 3}}'):
        (tmp_path / "net.json").write_text(text)
        with pytest.raises(ValueError, match=r"net\.json: got .*, wanted a JSON object with an 'input'"):
            read_description(tmp_path / "net.json")
