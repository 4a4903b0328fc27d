"""Decoding: equal to Pillow, in order, one bad image costs one image and no new graph."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.reading.augment import Mirror
from pipeline.reading.augmentation import Augmentation, Parameters, Size, Uniform
from pipeline.reading.dali import Decoder, EncodedBatch
from tests.encodings import encodings, pillow

H, W = 112, 96


def smooth_jpeg(seed: int, height: int = H, width: int = W) -> NDArray[np.uint8]:
    small = np.random.default_rng(seed).integers(0, 255, (7, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def batch(*images: NDArray[np.uint8]) -> EncodedBatch:
    return EncodedBatch(list(images))


@pytest.fixture
def decoder() -> Decoder:
    return Decoder(batch_size=4, height=H, width=W, device=torch.device("cpu"), threads=1)


@pytest.mark.parametrize(("height", "width"), [(112, 96), (111, 95)])
def test_pixels_equal_pillow(height: int, width: int) -> None:
    kinds = encodings(height, width)
    decoder = Decoder(len(kinds), height, width, torch.device("cpu"), threads=1)
    (decoded,) = decoder.decode([batch(*kinds.values())])
    assert decoded.images.shape == (len(kinds), 3, height, width)
    assert decoded.images.dtype == torch.float32
    for (kind, image), pixels in zip(kinds.items(), decoded.images, strict=True):
        levels = (pixels.double() - pillow(image)).abs().max() * 128
        # both take libjpeg-turbo's pixels; each converts CMYK by itself
        assert levels <= (1 if "CMYK" in kind else 1e-4), f"{kind}: {levels} levels of 255"


def augmenting(*augment: Augmentation) -> Decoder:
    return Decoder(batch_size=4, height=H, width=W, device=torch.device("cpu"), threads=1, augment=augment)


def test_mirror_is_an_exact_left_right_flip(decoder: Decoder) -> None:
    images = [smooth_jpeg(seed) for seed in range(4)]
    flips = np.array([1, 0, 0, 1], np.int32)
    (plain,) = decoder.decode([batch(*images)])
    (mirrored,) = augmenting(Mirror(name="mirror")).decode([EncodedBatch(images, (flips,))])
    for one, other, flip in zip(plain.images, mirrored.images, flips, strict=True):
        assert torch.equal(one.flip(-1) if flip else one, other)


def test_a_bad_image_leaves_the_parameters_of_the_others_in_place(decoder: Decoder) -> None:
    images = [smooth_jpeg(0), BAD["garbage"], BAD["wrong size"], smooth_jpeg(3)]
    (plain,) = decoder.decode([batch(*images)])
    parameters = (np.array([1, 0, 1, 0], np.int32), np.array([0, 1, 1, 1], np.int32))
    twice = augmenting(Mirror(name="mirror"), Mirror(name="mirror"))
    (mirrored,) = twice.decode([EncodedBatch(images, parameters)])
    assert plain.bad == mirrored.bad == (1, 2)
    assert mirrored.good.tolist() == [True, False, False, True]
    assert torch.equal(mirrored.images, plain.images.flip(-1))


class Broken(Augmentation):
    def parameters(self, uniform: Uniform, size: Size) -> Parameters:  # noqa: ARG002
        return uniform(1)[:, 0]


class Growing(Broken):
    def apply(self, fn: Any, pixels: Any, parameters: Any) -> Any:
        return fn.resize(pixels, resize_x=W + 8, resize_y=H + parameters * 0)


class Failing(Broken):
    def apply(self, fn: Any, pixels: Any, parameters: Any) -> Any:
        return fn.slice(pixels, parameters + 1000.0, 10.0, axes=[0], normalized_shape=False)


@pytest.mark.parametrize(
    ("augmentation", "message"),
    [
        (Growing(name="growing"), "data.augment: .growing. gave images 112 high and 104 wide, wanted 112 and 96"),
        (Failing(name="failing"), "data.augment: .failing. failed on an image that can be decoded: .*slice"),
    ],
)
def test_an_augmentation_that_does_not_work_is_named_and_costs_no_images(
    augmentation: Augmentation, message: str
) -> None:
    images = [smooth_jpeg(0), BAD["garbage"], smooth_jpeg(2)]
    encoded = EncodedBatch(images, (np.zeros(3, np.float32),))
    with pytest.raises(ValueError, match=f"(?i){message}"):
        list(augmenting(augmentation).decode([encoded]))


def test_an_image_of_another_size_is_undecodable_though_an_augmentation_would_hide_it() -> None:
    class Cropping(Broken):
        def apply(self, fn: Any, pixels: Any, parameters: Any) -> Any:
            return fn.resize(pixels, resize_x=W, resize_y=H + parameters * 0)

    images = [smooth_jpeg(0), BAD["wrong size"], smooth_jpeg(2)]
    (decoded,) = augmenting(Cropping(name="cropping")).decode([EncodedBatch(images, (np.zeros(3, np.float32),))])
    assert decoded.bad == (1,)


def test_a_batch_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="got 0 arrays of parameters, wanted 1"):
        list(augmenting(Mirror(name="mirror")).decode([batch(smooth_jpeg(0))]))


def test_batches_keep_their_order_and_may_be_short(decoder: Decoder) -> None:
    images = [smooth_jpeg(seed) for seed in range(9)]
    batches = [batch(*images[0:4]), batch(*images[4:8]), batch(images[8])]
    decoded = torch.cat([b.images for b in decoder.decode(batches)])
    alone = torch.cat([next(iter(decoder.decode([batch(image)]))).images for image in images])
    assert torch.equal(decoded, alone)


BAD = {
    "garbage": np.frombuffer(b"not an image at all", np.uint8),
    "truncated": smooth_jpeg(3)[:300],
    "empty": np.zeros(0, np.uint8),
    "wrong size": smooth_jpeg(3, height=100),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("position", [0, 2])
def test_one_bad_image_costs_one_image(decoder: Decoder, kind: str, position: int) -> None:
    good = [smooth_jpeg(seed) for seed in range(12)]
    clean = list(decoder.decode([batch(*good[i : i + 4]) for i in (0, 4, 8)]))
    images = list(good)
    images[4 + position] = BAD[kind]
    decoded = list(decoder.decode([batch(*images[i : i + 4]) for i in (0, 4, 8)]))
    assert [b.bad for b in decoded] == [(), (position,), ()]
    for got, want in zip(decoded, clean, strict=True):
        for row in set(range(4)) - set(got.bad):
            assert torch.equal(got.images[row], want.images[row])
    assert not decoded[1].images[position].any()


def test_every_image_bad(decoder: Decoder) -> None:
    (decoded,) = decoder.decode([batch(*[BAD["garbage"]] * 3)])
    assert decoded.bad == (0, 1, 2)


def test_pixels_stay_what_they_are_while_later_batches_are_decoded(decoder: Decoder) -> None:
    batches = [batch(smooth_jpeg(seed)) for seed in range(12)]
    kept = list(decoder.decode(batches))
    for seed, decoded in enumerate(kept):
        torch.testing.assert_close(decoded.images[0].double(), pillow(smooth_jpeg(seed)), rtol=0, atol=1e-6)


class Graphs(Decoder):
    """Counts the graphs that it builds; with `fragile`, one that has failed is of no use any more."""

    built, fragile = 0, ""

    def graph(self, source: Any, augment: Sequence[Augmentation], prefetch: int) -> Any:
        self.built += 1
        graph = super().graph(source, augment, prefetch)
        # one that decodes a batch at a time has no batch to skip
        return Fragile(graph, "" if prefetch == 1 and self.fragile == "skips a batch" else self.fragile)


class Fragile:
    def __init__(self, graph: Any, how: str) -> None:
        self.graph, self.how, self.failed = graph, how, False

    def run(self) -> Any:
        if self.failed and self.how == "fails for good":
            raise RuntimeError("no longer valid")
        try:
            if self.failed and self.how == "skips a batch":
                self.failed = False
                self.graph.run()
            return self.graph.run()
        except RuntimeError:
            self.failed = True
            raise


MIRROR = (Mirror(name="mirror"),)


@pytest.mark.parametrize(("fragile", "graphs"), [("", 2), ("fails for good", 12), ("skips a batch", 12)])
def test_bad_images_keep_their_batch_and_a_broken_graph_is_replaced(fragile: str, graphs: int) -> None:
    images = [smooth_jpeg(seed) for seed in range(24)]
    flips = [np.arange(4, dtype=np.int32) % 2] * 6
    clean = Decoder(4, H, W, torch.device("cpu"), 1, MIRROR)
    batches = [EncodedBatch(images[4 * i : 4 * i + 4], (flips[i],)) for i in range(6)]
    want = torch.cat([decoded.images for decoded in clean.decode(batches)])
    for place, kind in ((1, "garbage"), (5, "truncated"), (6, "wrong size"), (14, "empty"), (23, "wrong size")):
        images[place] = BAD[kind]
        want[place] = 0
    decoder = Graphs(4, H, W, torch.device("cpu"), 1, MIRROR)
    decoder.fragile = fragile
    batches = [EncodedBatch(images[4 * i : 4 * i + 4], (flips[i],)) for i in range(6)]
    got = list(decoder.decode(batches))
    assert torch.equal(torch.cat([decoded.images for decoded in got]), want)
    assert [decoded.bad for decoded in got] == [(1,), (1, 2), (), (2,), (), (3,)]
    assert decoder.built <= graphs


def refused_jpeg() -> NDArray[np.uint8]:
    """A JPEG that DALI refuses, and with it the batch, though its header is that of a whole image."""
    data = bytearray(smooth_jpeg(3))
    data[data.index(b"\xff\xc0") + 11] = 0  # the sampling factors of the first component
    return np.frombuffer(bytes(data), np.uint8)


@pytest.mark.parametrize("bad", [*BAD.values(), refused_jpeg()], ids=[*BAD, "refused"])
def test_an_image_that_is_left_out_costs_no_graph_and_nothing_else(bad: NDArray[np.uint8]) -> None:
    images = [smooth_jpeg(0), bad, smooth_jpeg(2), smooth_jpeg(3)]
    flips = np.array([1, 1, 0, 0], np.int32)
    (want,) = augmenting(Mirror(name="mirror")).decode([EncodedBatch(images, (flips,))])
    assert want.bad == (1,)
    decoder = Graphs(4, H, W, torch.device("cpu"), 1, MIRROR)
    for got in decoder.decode([EncodedBatch(images, (flips,), left_out=(1,))] * 3):
        assert got.bad == (1,)
        assert torch.equal(got.images, want.images)
    assert decoder.built == 1


def test_a_bad_image_beside_one_that_is_left_out_is_found() -> None:
    images = [refused_jpeg(), BAD["garbage"], smooth_jpeg(2), refused_jpeg()]
    decoder = Graphs(4, H, W, torch.device("cpu"), 1)
    (got,) = decoder.decode([EncodedBatch(images, left_out=(3,))])
    assert (got.bad, decoder.built) == ((0, 1, 3), 2)
    (alone,) = decoder.decode([batch(smooth_jpeg(2))])
    assert torch.equal(got.images[2], alone.images[0])


class Sick(Decoder):
    """Its first graph takes batches and fails with every one; counts the images that are decoded alone."""

    built, alone = 0, 0

    def graph(self, source: Any, augment: Sequence[Augmentation], prefetch: int) -> Any:
        graph, self.built = super().graph(source, augment, prefetch), self.built + 1
        real, is_first = graph.run, self.built == 1

        def run() -> Any:
            self.alone += prefetch == 1
            outputs = real()
            if is_first:
                raise RuntimeError("sick")
            return outputs

        graph.run = run
        return graph


def test_a_graph_that_fails_for_nothing_but_what_is_left_out_is_broken() -> None:
    """What was not decoded is no reason for it to fail: else all that follows would be decoded alone."""
    decoder = Sick(4, H, W, torch.device("cpu"), 1)
    batches = [EncodedBatch([smooth_jpeg(1), refused_jpeg()], left_out=(1,))] * 9
    assert [got.bad for got in decoder.decode(batches)] == [(1,)] * 9
    assert decoder.alone == 1


def test_a_graph_that_cannot_run_at_all_is_an_error() -> None:
    class Dead(Decoder):
        def graph(self, source: Any, augment: Sequence[Augmentation], prefetch: int) -> Any:
            graph = Fragile(super().graph(source, augment, prefetch), "fails for good")
            graph.failed = True
            return graph

    with pytest.raises(RuntimeError, match="no longer valid"):
        list(Dead(4, H, W, torch.device("cpu"), 1).decode([batch(smooth_jpeg(0))]))


@pytest.mark.parametrize("bad", [range(32), range(24), (0,)], ids=["all", "most", "the first"])
def test_many_bad_images_in_many_batches_do_not_end_the_process(bad: Sequence[int]) -> None:
    """DALI's decoder may crash if an image fails before others of its batch are decoded."""
    good, broken = smooth_jpeg(0), np.zeros(3000, np.uint8)
    images = [broken if position in bad else good for position in range(32)]
    decoded = list(Decoder(32, H, W, torch.device("cpu"), 2).decode(EncodedBatch(images) for _ in range(10)))
    assert [batch.bad for batch in decoded] == [tuple(bad)] * 10
