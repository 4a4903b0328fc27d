"""Augmentations: mirroring as ever, and one from outside, in one file, whose pixels depend on no rank and no past."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import Field

from pipeline.reading.augment import Blur, Mirror
from pipeline.reading.augmentation import AUGMENTATIONS, Augmentation, Parameters, Size, Uniform, parameters_of
from pipeline.reading.dali import Decoder, EncodedBatch
from pipeline.reading.order import Order
from pipeline.reading.reader import Batch, Reader
from pipeline.reading.tars import ShardSet
from pipeline.recipe.file import load_recipe
from pipeline.recipe.schema import RecipeError
from tests.faces import write_shards

SIDE = 32
SIZE = (SIDE, SIDE)


@AUGMENTATIONS.add("toy_shift")
class Shift(Augmentation):
    """Move the image by whole pixels; what comes in is black."""

    most: int = Field(4, ge=1)
    """The most pixels, each way."""

    def parameters(self, uniform: Uniform, size: Size) -> Parameters:
        """How far down and right the window moves, [B, 2] pixels."""
        return np.floor(uniform(2) * (2 * self.most + 1)).astype(np.int64) - self.most

    def apply(self, fn: Any, pixels: Any, parameters: Any) -> Any:
        """Cut the window out."""
        return fn.slice(pixels, start=parameters, shape=[SIDE, SIDE], axes=[0, 1], out_of_bounds_policy="pad")


@AUGMENTATIONS.add("toy_brightness")
class Brightness(Augmentation):
    """Brighter or darker."""

    def parameters(self, uniform: Uniform, size: Size) -> Parameters:
        """The factor, [B]."""
        return 0.5 + uniform(1)[:, 0]

    def apply(self, fn: Any, pixels: Any, parameters: Any) -> Any:
        """Multiply."""
        return fn.brightness(pixels, brightness=parameters)


AUGMENT = (Shift(name="toy_shift", most=5), Mirror(name="mirror"), Brightness(name="toy_brightness"))


def shifted(pixels_HWC: NDArray[np.uint8], down: int, right: int) -> NDArray[np.uint8]:
    moved = np.zeros_like(pixels_HWC)
    for row in range(SIDE):
        for column in range(SIDE):
            if 0 <= row + down < SIDE and 0 <= column + right < SIDE:
                moved[row, column] = pixels_HWC[row + down, column + right]
    return moved


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return ShardSet(write_shards(tmp_path_factory.mktemp("set"), identities=5, images=6))


def order_of(shards: ShardSet) -> Order:
    return Order(shards.samples_per_tar, seed=1, global_batch=12, streams=2)


def read(shards: ShardSet, steps: int, rank: int = 0, num_ranks: int = 1, first_step: int = 0) -> list[Batch]:
    decoder = Decoder(12 // num_ranks, SIDE, SIDE, torch.device("cpu"), 1, AUGMENT)
    reader = Reader(shards, order_of(shards), decoder, rank=rank, num_ranks=num_ranks, first_step=first_step)
    try:
        return [next(reader) for _ in range(steps)]
    finally:
        reader.close()


def plain_pixels(shards: ShardSet, ids: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The decoded images as they are, [B, H, W, 3]."""
    decoder = Decoder(len(ids), SIDE, SIDE, torch.device("cpu"), 1)
    (batch,) = decoder.decode([EncodedBatch(shards.read(ids))])
    pixels = batch.images.numpy().transpose(0, 2, 3, 1) * 128 + 127.5
    assert np.array_equal(pixels, pixels.round())
    return pixels.astype(np.uint8)


def test_pixels_equal_a_reference_in_numpy(shards: ShardSet) -> None:
    drawn = []
    for batch in read(shards, 6):
        parameters = parameters_of(AUGMENT, 1, order_of(shards).epoch_of(batch.step), batch.ids_B, SIZE)
        rows = list(zip(*(rows.tolist() for rows in parameters), strict=True))
        drawn += rows
        for got, pixels, (shift, flip, factor) in zip(
            batch.images_BCHW, plain_pixels(shards, batch.ids_B), rows, strict=True
        ):
            want = shifted(pixels, *shift)[:, :: -1 if flip else 1].astype(np.float64) * factor
            levels = got.numpy().transpose(1, 2, 0).astype(np.float64) * 128 + 127.5
            # a product that lies between two levels is rounded to the nearest, and white stays white
            assert np.abs(levels - want.clip(0, 255)).max() <= 0.5 + 1e-3
    shifts, flips, factors = zip(*drawn, strict=True)
    assert np.min(shifts) == -5 and np.max(shifts) == 5
    assert 0 < np.mean(flips) < 1
    assert 0.5 <= np.min(factors) < 0.6 and 1.4 < np.max(factors) <= 1.5


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_every_number_of_ranks_reads_the_same_pixels(shards: ShardSet, num_ranks: int) -> None:
    whole = read(shards, 3)
    parts = [read(shards, 3, rank, num_ranks) for rank in range(num_ranks)]
    for step in range(3):
        assert torch.equal(torch.cat([part[step].images_BCHW for part in parts]), whole[step].images_BCHW)


def test_a_resumed_reader_reads_the_same_pixels(shards: ShardSet) -> None:
    whole = read(shards, 5)
    for later, batch in zip(whole[3:], read(shards, 2, first_step=3), strict=True):
        assert torch.equal(batch.images_BCHW, later.images_BCHW)


IDS = np.arange(20_000)


def flips_of(seed: int, epoch: int, ids: NDArray[np.int64], probability: float = 0.5) -> NDArray[np.int32]:
    (flips,) = parameters_of([Mirror(name="mirror", probability=probability)], seed, epoch, ids, SIZE)
    return flips


def test_mirror_is_a_fair_hash_of_seed_epoch_and_sample() -> None:
    flips = flips_of(3, 5, IDS)
    assert abs(flips.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(IDS))
    np.testing.assert_array_equal(flips[::-1], flips_of(3, 5, IDS[::-1].copy()))
    for other in (flips_of(3, 6, IDS), flips_of(4, 5, IDS)):
        assert abs((other == flips).mean() - 0.5) < 0.02


def splitmix(state: int) -> int:
    z = (state + 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def hashed(seed: int, epoch: int, counter: int) -> int:
    """In plain integers."""
    return splitmix((splitmix((splitmix(seed) + epoch) % 2**64) + counter) % 2**64)


RUNS = [(0, 0, 0), (3, 5, 123_456_789), (2**40, 9, 2**33)]


def test_mirror_equals_splitmix64_in_plain_integers() -> None:
    for seed, epoch, sample in RUNS:
        assert flips_of(seed, epoch, np.array([sample]))[0] == bool(hashed(seed, epoch, sample) >> 63)


def test_what_is_drawn_is_named_by_augmentation_its_number_and_what_it_is_for() -> None:
    """So a run that goes on with a later version draws as before."""
    blurs = [Blur(name="blur", probability=0.5, sigma=(1, 2))] * 2

    def drawn(stream: str, seed: int, epoch: int, sample: int) -> float:
        start = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "little")
        return (hashed(seed, epoch, (sample + start) % 2**64) >> 11) / 2**53

    for run in RUNS:
        found = parameters_of(blurs, *run[:2], np.array([run[2]]), SIZE)
        for number in range(2):
            (sigma,), (chosen,) = found[2 * number : 2 * number + 2]
            assert sigma == pytest.approx(1 + drawn(f"blur {number} 0", *run), rel=1e-6)
            assert chosen == (drawn(f"blur {number} chosen 0", *run) < 0.5)


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.9, 1.0])
def test_the_share_that_is_flipped_is_the_probability(probability: float) -> None:
    share = flips_of(0, 0, IDS, probability).mean()
    assert abs(share - probability) <= 4 * np.sqrt(probability * (1 - probability) / len(IDS))


def test_an_augmentation_that_is_added_leaves_the_others_as_they_were() -> None:
    (alone,) = parameters_of([Mirror(name="mirror")], 1, 2, IDS, SIZE)
    _, beside, _ = parameters_of(AUGMENT, 1, 2, IDS, SIZE)
    np.testing.assert_array_equal(beside, alone)


def test_each_draws_numbers_of_its_own() -> None:
    shift = Shift(name="toy_shift", most=50)
    first, second = parameters_of([shift, shift], 1, 2, IDS, SIZE)
    columns = np.column_stack([first, second, flips_of(1, 2, IDS)]).astype(np.float64)
    correlations = np.corrcoef(columns.T) - np.eye(columns.shape[1])
    assert np.abs(correlations).max() < 4 / np.sqrt(len(IDS))
    for column in (first[:, 0], first[:, 1], second[:, 0], second[:, 1]):
        assert np.bincount(column + 50, minlength=101).min() > 0


def test_parameters_have_the_types_that_operators_take() -> None:
    assert [rows.dtype for rows in parameters_of(AUGMENT, 0, 0, IDS[:3], SIZE)] == [np.int32, np.int32, np.float32]


@pytest.mark.parametrize("shape", [(2,), (3, 1, 2)])
def test_parameters_without_a_row_for_each_sample_are_refused(shape: tuple[int, ...]) -> None:
    class Careless(Shift):
        def parameters(self, uniform: Uniform, size: Size) -> Parameters:
            return np.zeros(shape)

    got = re.escape(f"data.augment: toy_shift: got parameters of shape {shape}, wanted (3,) or")
    with pytest.raises(ValueError, match=got):
        parameters_of([Careless(name="toy_shift")], 0, 0, IDS[:3], SIZE)


def augment_of(tmp_path: Path, data: str) -> tuple[Augmentation, ...]:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"data: {{shards: /shards, global_batch: 8{data}}}\n"
        "backbone: {name: sphereface4}\noptimizer: {steps: 1, learning_rate: 0.1}\n"
    )
    recipe = load_recipe(path)
    path.write_text(recipe.to_yaml())
    assert load_recipe(path) == recipe
    return recipe.data.augment


def test_a_recipe_lists_them_by_name_or_with_keys(tmp_path: Path) -> None:
    assert augment_of(tmp_path, "") == (Mirror(name="mirror", probability=0.5),)
    assert augment_of(tmp_path, ", augment: []") == ()
    assert augment_of(tmp_path, ", augment: [{name: mirror, probability: 0.25}, toy_shift]") == (
        Mirror(name="mirror", probability=0.25),
        Shift(name="toy_shift", most=4),
    )


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ("[flip]", "data.augment.0.name: got 'flip', wanted one of mirror"),
        (
            "[mirror, {name: mirror, probability: 2}]",
            "data.augment.1.probability: got 2, wanted less than",
        ),
        ("[{name: mirror, most: 2}]", "data.augment.0.most: unknown key; a key of toy_shift only"),
        ("mirror", 'data.augment: got "mirror", wanted a valid array'),
    ],
)
def test_faults_name_key_got_and_wanted(tmp_path: Path, augment: str, message: str) -> None:
    with pytest.raises(RecipeError) as found:
        augment_of(tmp_path, f", augment: {augment}")
    assert message in str(found.value)
