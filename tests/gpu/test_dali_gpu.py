"""``mixed`` decode on CUDA gives the pixels of the CPU and of Pillow, augmented too; a bad image costs itself."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.reading import augment as named
from pipeline.reading.augment import Mirror
from pipeline.reading.augmentation import AUGMENTATIONS, Augmentation, Parameters, Size, Uniform, parameters_of
from pipeline.reading.dali import HARDWARE_SHARE, Decoder, EncodedBatch
from tests.encodings import encodings, pillow
from tests.unit.reading.test_dali import BAD, Graphs, H, W, smooth_jpeg

LEVEL = 1 / 128  # of 255


class Moved(Augmentation):
    """Every kind of parameter: of several numbers, and of one; whole, and not."""

    def parameters(self, uniform: Uniform, size: Size) -> Parameters:  # noqa: ARG002
        return np.floor(uniform(2) * 9).astype(np.int64) - 4

    def apply(self, fn: Any, pixels: Any, parameters: Any) -> Any:
        return fn.slice(pixels, start=parameters, shape=[H, W], axes=[0, 1], out_of_bounds_policy="pad")


class Brightness(Augmentation):
    def parameters(self, uniform: Uniform, size: Size) -> Parameters:  # noqa: ARG002
        return 0.5 + uniform(1)[:, 0]

    def apply(self, fn: Any, pixels: Any, parameters: Any) -> Any:
        return fn.brightness(pixels, brightness=parameters)


AUGMENT = (Mirror(name="mirror"), Moved(name="moved"), Brightness(name="brightness"))


def decode(
    device: torch.device, images: list[NDArray[np.uint8]], augment: tuple[Augmentation, ...] = AUGMENT[:1]
) -> tuple[torch.Tensor, tuple[int, ...]]:
    decoder = Decoder(len(images), H, W, device, 2, augment)
    parameters = parameters_of(augment, 0, 0, np.arange(len(images)), (H, W))
    (batch,) = decoder.decode([EncodedBatch(images, parameters)])
    return batch.images.cpu(), batch.bad


# The engine decodes baseline JPEGs only, and a share of a batch: every kind goes through each way that there is.
@pytest.mark.parametrize("hardware_share", [0.0, HARDWARE_SHARE, 1.0])
def test_every_kind_of_image_has_the_pixels_of_pillow_and_of_the_cpu(
    device: torch.device, hardware_share: float
) -> None:
    kinds = encodings(H, W)
    batch = EncodedBatch(list(kinds.values()))
    decoder = Decoder(len(kinds), H, W, device, 2, hardware_share=hardware_share)
    (got,) = decoder.decode([batch])
    (on_cpu,) = Decoder(len(kinds), H, W, torch.device("cpu"), 2).decode([batch])
    assert got.bad == ()
    off = {
        f"{kind}: {who}": float((pixels.cpu().double() - want.double()).abs().max() / LEVEL)
        for pixels, cpu, (kind, image) in zip(got.images, on_cpu.images, kinds.items(), strict=True)
        for who, want in (("Pillow", pillow(image)), ("the CPU", cpu))
    }
    too_far = {what: levels for what, levels in off.items() if levels > 2.001}
    assert not too_far, f"levels of 255: {too_far}"


def test_the_pixels_of_an_image_do_not_depend_on_its_batch(device: torch.device) -> None:
    images = [smooth_jpeg(seed) for seed in range(32)]
    together = decode(device, images, ())[0]
    alone = torch.cat([decode(device, [image], ())[0] for image in images])
    # the engine and the cores, which take shares of a batch, may round differently
    assert (together - alone).abs().max() <= 2.001 * LEVEL


def test_augmentations_are_the_same_on_both(device: torch.device) -> None:
    images = [smooth_jpeg(seed) for seed in range(32)]
    on_cpu, got = (decode(where, images, AUGMENT)[0] for where in (torch.device("cpu"), device))
    # two levels, times the largest factor, and one more rounding
    assert (on_cpu - got).abs().max() <= 4 * LEVEL
    assert (on_cpu - got).abs().mean() <= 1 * LEVEL


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if AUGMENTATIONS[name].__module__ == named.__name__])
def test_each_augmentation_is_the_same_on_both(device: torch.device, name: str) -> None:
    images = [smooth_jpeg(seed) for seed in range(32)]
    augment = (AUGMENTATIONS.parse({"name": name, "probability": 0.5}),)
    on_cpu, got = (decode(where, images, augment)[0] for where in (torch.device("cpu"), device))
    # as above; a JPEG's quantisation may fall to either side of a step
    assert (on_cpu - got).abs().mean() <= 1 * LEVEL
    assert name in ("jpeg", "low_resolution") or (on_cpu - got).abs().max() <= 4 * LEVEL


@pytest.mark.parametrize("kind", ["garbage", "wrong size", "empty"])
def test_a_bad_image_costs_itself(device: torch.device, kind: str) -> None:
    images = [smooth_jpeg(0), BAD[kind], smooth_jpeg(2)]
    pixels, bad = decode(device, images, AUGMENT)
    assert bad == (1,)
    assert not pixels[1].any()


def test_bad_images_cost_one_more_graph(device: torch.device) -> None:
    """Building one takes many milliseconds on a GPU; `make bench-gpu` has the time of a bad image."""
    images = [[smooth_jpeg(8 * batch + i) for i in range(8)] for batch in range(6)]
    for batch in (1, 2, 4):
        images[batch][3] = BAD["garbage"]
    decoder = Graphs(8, H, W, device, 2)
    got = list(decoder.decode(EncodedBatch(batch) for batch in images))
    assert [batch.bad for batch in got] == [(), (3,), (3,), (), (3,), ()]
    assert decoder.built == 2
