"""``mixed`` decode on CUDA equals CPU decode within a JPEG decoder's tolerance, and loses one bad image at a time."""

import numpy as np
import pytest
import torch

from pipeline.reading.dali import Decoder, EncodedBatch
from tests.unit.reading.test_dali import BAD, H, W, smooth_jpeg

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


def decode(device: str, images: list[np.ndarray]) -> tuple[torch.Tensor, tuple[int, ...]]:
    decoder = Decoder(len(images), H, W, torch.device(device), threads=2)
    mirror = np.arange(len(images)) % 2 == 0
    (batch,) = decoder.decode([EncodedBatch(images, mirror)])
    return batch.images.cpu(), batch.bad


def test_mixed_equals_cpu() -> None:
    images = [smooth_jpeg(seed) for seed in range(32)]
    on_cpu, on_gpu = decode("cpu", images)[0], decode("cuda", images)[0]
    # two decoders may round a chroma sample differently: a few levels of 255 at most, a fraction of one on average
    assert (on_cpu - on_gpu).abs().max() <= 6 / 128
    assert (on_cpu - on_gpu).abs().mean() <= 0.5 / 128


def test_a_bad_image_costs_itself() -> None:
    images = [smooth_jpeg(0), BAD["garbage"], smooth_jpeg(2)]
    pixels, bad = decode("cuda", images)
    assert bad == (1,)
    assert not pixels[1].any()
