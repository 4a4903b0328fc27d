"""Each augmentation against a slow reference; whom it changes, and that no rank and no past decides what it draws."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from nvidia.dali import types
from PIL import Image

from pipeline.reading import augment as named
from pipeline.reading.augmentation import AUGMENTATIONS, Augmentation, parameters_of
from pipeline.reading.dali import Decoder, EncodedBatch
from pipeline.reading.mixes import MIXES
from pipeline.reading.order import Order
from pipeline.reading.reader import Reader
from pipeline.reading.sheet import EPOCHS, SAMPLES, augmented_sheet
from pipeline.reading.tars import ShardSet
from pipeline.recipe.file import recipe_of
from pipeline.recipe.schema import RecipeError
from tests.faces import write_shards

SIZE = H, W = 56, 48
IDS = np.arange(24)
NAMES = [name for name in AUGMENTATIONS if AUGMENTATIONS[name].__module__ == named.__name__]

Pixels = NDArray[Any]  # [H, W, 3]


def faces() -> list[Pixels]:
    """Smooth pictures in all colours, with hard edges too."""
    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, (len(IDS), 7, 6, 3), dtype=np.uint8)
    pixels = np.stack([np.asarray(Image.fromarray(one).resize((W, H), Image.Resampling.BICUBIC)) for one in small])
    pixels[:, 20:30, 10:17] = generator.integers(0, 256, (len(IDS), 1, 1, 3))
    return list(pixels)


FACES = faces()


def png(pixels: Pixels) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return np.frombuffer(buffer.getvalue(), np.uint8)


ENCODED = [png(face) for face in FACES]


def augmented(*augment: Augmentation) -> Pixels:
    """[B, H, W, 3] levels of the faces as training sees them in epoch 1."""
    decoder = Decoder(len(IDS), H, W, torch.device("cpu"), 2, augment)
    (batch,) = decoder.decode([EncodedBatch(ENCODED, parameters_of(augment, 3, 1, IDS, SIZE))])
    levels = batch.images.numpy().transpose(0, 2, 3, 1) * 128 + 127.5
    assert np.array_equal(levels, levels.round())
    return levels.astype(np.uint8)


def make(name: str, **keys: Any) -> Augmentation:
    return AUGMENTATIONS.parse({"name": name} | keys)


def of_pillow(pixels: Pixels, change: Callable[[Image.Image], Image.Image]) -> Pixels:
    return np.asarray(change(Image.fromarray(pixels)).convert("RGB"))


def mirrored(pixels: Pixels, flip: float) -> Pixels:
    return pixels[:, ::-1] if flip else pixels


def cropped(pixels: Pixels, top: float, left: float, bottom: float, right: float) -> Pixels:
    padded = np.pad(pixels, ((6, 6), (6, 6), (0, 0)))
    return padded[int(top) + 6 : int(bottom) + 6, int(left) + 6 : int(right) + 6]


def erased(pixels: Pixels, top: float, left: float, height: float, width: float) -> Pixels:
    changed = pixels.copy()
    for row in range(H):
        for column in range(W):
            if top <= row < top + height and left <= column < left + width:
                changed[row, column] = 127
    return changed


def coloured(pixels: Pixels, brightness: float, contrast: float, saturation: float, hue: float) -> Pixels:
    assert hue == 0
    luma = pixels.astype(np.float64) @ [0.299, 0.587, 0.114]
    saturated = luma[..., None] + saturation * (pixels - luma[..., None])
    return (((saturated - 127.5) * contrast + 127.5) * brightness).clip(0, 255)


def greyed(pixels: Pixels, saturation: float) -> Pixels:
    return np.repeat((pixels.astype(np.float64) @ [0.299, 0.587, 0.114])[..., None], 3, axis=2)


def requantised(pixels: Pixels, quality: float) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=int(quality))
    return np.asarray(Image.open(buffer))


def blurred(pixels: Pixels, sigma: float) -> Pixels:
    radius = int(np.ceil(3 * sigma))
    weights = np.exp(-np.square(np.arange(-radius, radius + 1)) / (2 * sigma**2))
    weights /= weights.sum()
    padded = np.pad(pixels.astype(np.float64), ((radius, radius), (radius, radius), (0, 0)), mode="reflect")
    rows = sum(w * padded[shift : shift + H] for shift, w in enumerate(weights))
    return np.asarray(sum(w * rows[:, shift : shift + W] for shift, w in enumerate(weights)))


def smaller(pixels: Pixels, *row: float) -> Pixels:
    height, width = map(int, row[:2])
    bilinear = Image.Resampling.BILINEAR
    return of_pillow(pixels, lambda image: image.resize((width, height), bilinear).resize((W, H), bilinear))


def looked_up(pixels: Pixels, *matrix: float) -> Pixels:
    return of_pillow(
        pixels,
        lambda image: image.transform((W, H), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR),
    )


@pytest.mark.parametrize(
    ("augmentation", "reference", "levels"),
    [
        (make("mirror"), mirrored, 0),
        (make("crop", padding=6), cropped, 0),
        (make("cutout", side=(0.2, 0.6)), erased, 0),
        (make("jpeg", quality=(20, 95)), requantised, 0),
        # DALI's kernels have single precision, a matrix of YIQ with few digits, and round each step to levels.
        (make("grey"), greyed, 1.2),
        (make("colour", brightness=(0.5, 1.5), contrast=(0.5, 1.5), saturation=(0.5, 1.5)), coloured, 1.5),
        (make("blur"), blurred, 1),
        (make("low_resolution"), smaller, 4),  # Pillow rounds four times
    ],
    ids=lambda value: value.name if isinstance(value, Augmentation) else None,
)
def test_pixels_equal_a_reference(augmentation: Augmentation, reference: Callable[..., Pixels], levels: float) -> None:
    (rows, *_) = parameters_of([augmentation], 3, 1, IDS, SIZE)
    for got, face, row in zip(augmented(augmentation), FACES, rows, strict=True):
        want = reference(face, *np.atleast_1d(row).tolist())
        assert np.abs(got.astype(np.float64) - want).max() <= levels
    assert len(np.unique(rows, axis=0)) > 1 or augmentation.name == "grey"


def test_affine_maps_as_pillow_does() -> None:
    augmentation = make("affine", scale=(0.8, 1.25), degrees=(-20, 20))
    (rows,) = parameters_of([augmentation], 3, 1, IDS, SIZE)
    inner = np.s_[14:-14, 14:-14]  # beyond it, black may come in, which Pillow does not blend with
    for got, face, row in zip(augmented(augmentation), FACES, rows, strict=True):
        off = np.abs(got[inner].astype(int) - looked_up(face, *row.tolist())[inner])
        assert off.max() <= 2
    clockwise = augmented(make("affine", scale=(1, 1), degrees=(20, 20)))
    larger = augmented(make("affine", scale=(2, 2), degrees=(0, 0)))
    for face, turned, zoomed in zip(FACES, clockwise, larger, strict=True):
        want = of_pillow(face, lambda image: image.rotate(-20, Image.Resampling.BILINEAR))
        assert np.abs(turned[inner].astype(int) - want[inner]).max() <= 2
        middle = face[H // 4 : -H // 4, W // 4 : -W // 4]
        want = of_pillow(middle, lambda image: image.resize((W, H), Image.Resampling.BILINEAR))
        assert np.abs(zoomed[inner].astype(int) - want[inner]).max() <= 2


def test_a_window_of_the_image_is_left_and_all_else_is_black() -> None:
    many = np.arange(5000)
    window = named.Window(name="window", area=(0.2, 1.0), aspect=(3 / 4, 4 / 3))
    (rows,) = parameters_of([window], 3, 1, many, SIZE)
    top, left = rows[:, 8], rows[:, 13]
    height, width = H - top - rows[:, 10], W - left - rows[:, 15]
    assert min(top.min(), left.min(), rows[:, 10].min(), rows[:, 15].min()) == 0
    share, aspect = height * width / (H * W), width / height
    assert 0.18 < share.min() < 0.25 and 0.9 < share.max() <= 1
    assert 0.7 < aspect.min() < 0.8 and 1.25 < aspect.max() < 1.4
    assert abs(np.corrcoef(top / np.maximum(H - height, 1), left / np.maximum(W - width, 1))[0, 1]) < 0.06
    for got, face, row in zip(augmented(window), FACES, rows, strict=False):
        want = np.zeros_like(face)
        inside = np.s_[int(row[8]) : H - int(row[10]), int(row[13]) : W - int(row[15])]
        want[inside] = face[inside]
        assert np.array_equal(got, want)


def test_whole_numbers_come_equally_often_with_both_ends() -> None:
    numbers = named.whole_between(-2, 3, (np.arange(600) + 0.5) / 600)
    assert np.unique(numbers, return_counts=True)[1].tolist() == [100] * 6
    assert (numbers.min(), numbers.max()) == (-2, 3)


def test_a_crop_moves_as_far_as_its_padding_each_way() -> None:
    (rows,) = parameters_of([make("crop", padding=3)], 3, 1, np.arange(200), SIZE)
    for moved in (rows[:, 0], rows[:, 1], rows[:, 2] - H, rows[:, 3] - W):
        assert set(moved.tolist()) == set(range(-3, 4))


@pytest.mark.parametrize(("area", "aspect", "free"), [(28 / W, 28 / H, 13), (W / H, 1.0, 8)])
def test_a_window_as_tall_or_as_wide_as_the_image_fits(area: float, aspect: float, free: int) -> None:
    window = named.Window(name="window", area=(area, area), aspect=(aspect, aspect))
    (rows,) = parameters_of([window], 3, 1, np.arange(200), SIZE)
    height, width = H - rows[:, 8] - rows[:, 10], W - rows[:, 13] - rows[:, 15]
    assert ((height == H) | (width == W)).all()
    assert rows[:, free].min() == 0 and rows[:, free].max() == max(W - width[0], H - height[0])  # not in the middle


def test_the_window_that_fits_nowhere_is_the_largest_in_the_middle() -> None:
    tall = named.Window(name="window", area=(1.0, 1.0), aspect=(0.5, 0.5))
    (rows,) = parameters_of([tall], 3, 1, IDS, SIZE)
    assert (H - rows[:, 8] - rows[:, 10] == H).all()
    assert (W - rows[:, 13] - rows[:, 15] == H / 2).all()
    assert (rows[:, 13] == (W - H / 2) // 2).all()
    wide = named.Window(name="window", area=(1.0, 1.0), aspect=(2.0, 2.0))
    (rows,) = parameters_of([wide], 3, 1, IDS, SIZE)
    assert (W - rows[:, 13] - rows[:, 15] == W).all()
    assert (rows[:, 8] == (H - W / 2) // 2).all() and (rows[:, 10] == rows[:, 8]).all()


def test_what_is_erased_has_its_centre_anywhere() -> None:
    (rows,) = parameters_of([make("cutout", side=(0.4, 0.4))], 3, 1, np.arange(5000), SIZE)
    for first, last, length in zip(rows.T[:2], rows.T[:2] + rows.T[2:], SIZE, strict=True):
        for cut in (first == 0, last == length):  # a side that lies beyond the image, which is half of 0.4
            assert abs(cut.mean() - 0.2) < 0.03


def test_lower_resolution_has_whole_pixels_rounded_down() -> None:
    (rows,) = parameters_of([make("low_resolution", scale=(0.498, 0.498))], 3, 1, IDS, SIZE)
    assert (rows[:, :2] == (27, 23)).all()


def test_without_antialias_each_pixel_is_looked_up_alone() -> None:
    for got, face in zip(augmented(make("low_resolution", scale=(0.5, 0.5), antialias=False)), FACES, strict=True):
        small = face.reshape(H // 2, 2, W // 2, 2, 3).mean(axis=(1, 3)).round().astype(np.uint8)
        want = of_pillow(small, lambda image: image.resize((W, H), Image.Resampling.BILINEAR))
        assert np.abs(got.astype(int) - want).max() <= 2


def test_hue_turns_colours_and_keeps_luma() -> None:
    turned = augmented(make("colour", hue=(120, 120)))
    for got, face in zip(turned, FACES, strict=True):
        inside = (got > 0).all(axis=2) & (got < 255).all(axis=2)
        luma = (got.astype(np.float64) - face)[inside] @ [0.299, 0.587, 0.114]
        assert np.abs(luma).max() < 3
        assert np.abs(got.astype(int) - face).mean() > 5


PLAIN = augmented()


@pytest.mark.parametrize("name", NAMES)
def test_the_probability_says_whom_it_changes(name: str) -> None:
    wide = {"colour": {"brightness": (0.4, 0.6)}}.get(name, {})
    never, some, always = (make(name, probability=p, **wide) for p in (0, 0.5, 1))
    assert np.array_equal(augmented(never), PLAIN)
    everyone, half = augmented(always), augmented(some)
    chosen = parameters_of([some], 3, 1, IDS, SIZE)[-1].astype(bool)
    assert 0 < chosen.mean() < 1
    assert np.array_equal(half[chosen], everyone[chosen])
    assert np.array_equal(half[~chosen], PLAIN[~chosen])
    changed = (everyone != PLAIN).any(axis=(1, 2, 3))
    assert changed.mean() > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_its_share_is_the_probability(name: str) -> None:
    many = np.arange(20_000)
    chosen = parameters_of([make(name, probability=0.2)], 0, 0, many, SIZE)[-1]
    assert abs(chosen.mean() - 0.2) < 4 * np.sqrt(0.2 * 0.8 / len(many))


Phases = tuple[tuple[int, tuple[Augmentation, ...]], ...]
ALL = tuple(make(name, probability=0.5) for name in NAMES)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return ShardSet(write_shards(tmp_path_factory.mktemp("set"), identities=5, images=6))


def read(
    shards: ShardSet, steps: int, rank: int = 0, num_ranks: int = 1, first_step: int = 0, phases: Phases = ((0, ALL),)
) -> list[torch.Tensor]:
    order = Order(shards.samples_per_tar, seed=1, global_batch=12, streams=2)
    cpu = torch.device("cpu")
    decoders = [(start, Decoder(12 // num_ranks, 32, 32, cpu, 1, augment)) for start, augment in phases]
    reader = Reader(shards, order, decoders, rank=rank, num_ranks=num_ranks, first_step=first_step)
    try:
        return [next(reader).images_BCHW for _ in range(steps)]
    finally:
        reader.close()


def test_all_of_them_are_the_same_on_any_number_of_ranks_and_after_a_resume(shards: ShardSet) -> None:
    whole = read(shards, 4)
    for num_ranks in (2, 3):
        parts = [read(shards, 4, rank, num_ranks) for rank in range(num_ranks)]
        for step in range(4):
            assert torch.equal(torch.cat([part[step] for part in parts]), whole[step])
    # An epoch has two and a half steps: before the end of one, and in the next.
    for first in (1, 3):
        for later, images in zip(whole[first:], read(shards, 4 - first, first_step=first), strict=True):
            assert torch.equal(images, later)


def test_other_augmentations_take_over_at_their_step(shards: ShardSet) -> None:
    phases: Phases = ((0, ()), (2, ALL), (4, (make("mirror"),)))
    alone = [read(shards, 6, phases=((0, augment),)) for _, augment in phases]
    want = [alone[0][0], alone[0][1], alone[1][2], alone[1][3], alone[2][4], alone[2][5]]
    for first in (0, 1, 2, 3, 5):
        for got, images in zip(read(shards, 6 - first, first_step=first, phases=phases), want[first:], strict=True):
            assert torch.equal(got, images)


def test_a_sheet_shows_samples_as_they_are_and_as_in_the_first_epochs(shards: ShardSet) -> None:
    sheet = augmented_sheet(shards, ALL, seed=3).reshape(SAMPLES, 32, EPOCHS + 1, 32, 3)
    ids = np.unique(np.linspace(0, 29, SAMPLES).astype(np.int64))
    for column in range(EPOCHS + 1):
        augment = ALL if column else ()
        drawn = parameters_of(augment, 3, column - 1 if column else 0, ids, (32, 32))
        decoder = Decoder(len(ids), 32, 32, torch.device("cpu"), 1, augment)
        (batch,) = decoder.decode([EncodedBatch(shards.read(ids), drawn)])
        want = batch.images.permute(0, 2, 3, 1).numpy() * 128 + 127.5
        assert np.array_equal(sheet[:, :, column], want)


def test_numbers_of_interpolations_are_those_of_dali() -> None:
    assert int(types.DALIDataType.INTERP_TYPE) == named.INTERPOLATION_TYPE
    by_name = {"nearest": "NN", "linear": "LINEAR", "cubic": "CUBIC", "lanczos": "LANCZOS3"}
    theirs = {name: int(getattr(types.DALIInterpType, f"INTERP_{word}")) for name, word in by_name.items()}
    assert theirs == named.INTERPOLATIONS


def augment_of(augment: Any) -> tuple[Augmentation, ...]:
    return recipe_of(
        {
            "data": {"shards": Path("/shards"), "global_batch": 8, "augment": augment},
            "backbone": {"name": "sphereface4"},
            "optimizer": {"steps": 1, "learning_rate": 0.1},
        }
    ).data.augment


@pytest.mark.parametrize("mix", list(MIXES))
def test_the_word_for_a_mix_stands_for_its_parts(mix: str) -> None:
    recipe = augment_of(["mirror", mix])
    assert recipe == (make("mirror"), *MIXES[mix])
    assert augment_of([one.model_dump(mode="json") for one in recipe]) == recipe
    assert (augmented(*recipe) != PLAIN).any()


def test_a_mix_has_the_numbers_of_its_trainer() -> None:
    """AdaFace's from ``RandomResizedCrop``, its `low_res_augmentation` and ``ColorJitter(0.5, 0.5, 0.5, 0)``;
    arcface_torch's images of 112 are 56 to 89 in between."""
    found = {mix: {one.name: one.model_dump(exclude={"name"}) for one in parts} for mix, parts in MIXES.items()}
    half, all_filters = (0.5, 1.5), ("nearest", "linear", "cubic", "lanczos")
    assert found["adaface"] == {
        "window": {"probability": 0.2, "area": (0.2, 1), "aspect": (3 / 4, 4 / 3)},
        "low_resolution": {"probability": 0.2, "scale": (0.2, 1), "filters": all_filters, "antialias": False},
        "colour": {"probability": 0.2, "brightness": half, "contrast": half, "saturation": half, "hue": (0, 0)},
    }
    unchanged = {"brightness": (1, 1), "contrast": (1, 1)}
    assert found["arcface_torch"] == {
        "low_resolution": {"probability": 0.1, "scale": (0.5, 89 / 112), "filters": ("linear",), "antialias": True},
        "blur": {"probability": 0.2, "sigma": (0.69, 1.03)},
        "colour": {"probability": 0.2, **unchanged, "saturation": (1, 1.2), "hue": (0, 20)},
        "grey": {"probability": 0.1},
    }


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ({"name": "blur", "sigma": [2, 1]}, "data.augment.0.sigma: got [2, 1], wanted two numbers, the least first"),
        ({"name": "jpeg", "quality": [0, 9]}, "data.augment.0.quality.0: got 0, wanted greater than or equal to 1"),
        ({"name": "grey", "probability": 2}, "data.augment.0.probability: got 2, wanted less than or equal to 1"),
        ({"name": "cutout", "side": [0.5, 2.0]}, "data.augment.0.side.1: got 2.0, wanted less than or equal to 1"),
        ({"name": "low_resolution", "filters": ["area"]}, "data.augment.0.filters.0: got \"area\", wanted 'nearest'"),
        ("flip", "data.augment.0.name: got 'flip', wanted one of mirror, crop, affine"),
    ],
)
def test_faults_are_named(augment: Any, message: str) -> None:
    with pytest.raises(RecipeError) as found:
        augment_of([augment])
    assert message in str(found.value)
