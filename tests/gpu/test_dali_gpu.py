"""``mixed`` decode on CUDA equals CPU decode within a decoder's tolerance, augmented too; a bad image costs itself."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.reading.augment import Augmentation, Mirror, Parameters, Uniform, parameters_of
from pipeline.reading.dali import Decoder, EncodedBatch
from tests.unit.reading.test_dali import BAD, H, W, smooth_jpeg

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


class Moved(Augmentation):
    """Every kind of parameter: of several numbers, and of one; whole, and not."""

    def parameters(self, uniform: Uniform) -> Parameters:
        return np.floor(uniform(2) * 9).astype(np.int64) - 4

    def apply(self, fn: Any, pixels: Any, parameters: Any) -> Any:
        return fn.slice(pixels, start=parameters, shape=[H, W], axes=[0, 1], out_of_bounds_policy="pad")


class Brightness(Augmentation):
    def parameters(self, uniform: Uniform) -> Parameters:
        return 0.5 + uniform(1)[:, 0]

    def apply(self, fn: Any, pixels: Any, parameters: Any) -> Any:
        return fn.brightness(pixels, brightness=parameters)


AUGMENT = (Mirror(name="mirror"), Moved(name="moved"), Brightness(name="brightness"))


def decode(
    device: str, images: list[NDArray[np.uint8]], augment: tuple[Augmentation, ...] = AUGMENT[:1]
) -> tuple[torch.Tensor, tuple[int, ...]]:
    decoder = Decoder(len(images), H, W, torch.device(device), 2, augment)
    parameters = parameters_of(augment, 0, 0, np.arange(len(images)))
    (batch,) = decoder.decode([EncodedBatch(images, parameters)])
    return batch.images.cpu(), batch.bad


def test_mixed_equals_cpu() -> None:
    images = [smooth_jpeg(seed) for seed in range(32)]
    on_cpu, on_gpu = decode("cpu", images)[0], decode("cuda", images)[0]
    # two decoders may round a chroma sample differently: a few levels of 255 at most, a fraction of one on average
    assert (on_cpu - on_gpu).abs().max() <= 6 / 128
    assert (on_cpu - on_gpu).abs().mean() <= 0.5 / 128


def test_augmentations_are_the_same_on_both() -> None:
    images = [smooth_jpeg(seed) for seed in range(32)]
    on_cpu, on_gpu = decode("cpu", images, AUGMENT)[0], decode("cuda", images, AUGMENT)[0]
    # as above, times the largest factor, and one more rounding
    assert (on_cpu - on_gpu).abs().max() <= 10 / 128
    assert (on_cpu - on_gpu).abs().mean() <= 1 / 128


@pytest.mark.parametrize("kind", ["garbage", "wrong size"])
def test_a_bad_image_costs_itself(kind: str) -> None:
    images = [smooth_jpeg(0), BAD[kind], smooth_jpeg(2)]
    pixels, bad = decode("cuda", images, AUGMENT)
    assert bad == (1,)
    assert not pixels[1].any()
