"""Embedding: the features of the paper, from files, leaving the network as it was; and what goes wrong with files."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipeline.evaluation.embedding.embed import embed, files_of
from pipeline.evaluation.embedding.kept import keep, keep_share, means_of_frames, remarks
from pipeline.evaluation.embedding.source import How, ImageList, Network, Table, image_files
from pipeline.evaluation.embedding.trained import digest_of
from pipeline.evaluation.protocols.pairs import assemble
from pipeline.evaluation.protocols.pairs_file import Row

HEIGHT, WIDTH = 12, 8


def tiny_backbone() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(4), nn.Flatten(), nn.Linear(4 * 10 * 6, 5), nn.Dropout(0.9)
    )


@pytest.fixture
def faces(tmp_path: Path) -> tuple[Path, list[str]]:
    generator = np.random.default_rng(0)
    names = [f"p{i}/a.png" for i in range(7)]
    for name in names:
        (tmp_path / name).parent.mkdir()
        Image.fromarray(generator.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)).save(tmp_path / name)
    return tmp_path, names


def network(backbone: nn.Module) -> Network:
    return Network("tiny", digest_of(backbone.state_dict()), 0, backbone, (HEIGHT, WIDTH))


def embed_files(backbone: nn.Module, folder: Path, names: list[str], batch_size: int = 3) -> np.ndarray:
    return np.concatenate(list(network(backbone).features(image_files(folder, names), How(batch_size))))


def slow_features(backbone: nn.Module, file: Path) -> np.ndarray:
    """One image at a time, through Pillow."""
    backbone = backbone.eval()
    pixels = torch.tensor((np.asarray(Image.open(file), np.float32) - 127.5) / 128).permute(2, 0, 1)[None]
    mirrored = torch.tensor(pixels.numpy()[..., ::-1].copy())
    with torch.no_grad():
        return np.concatenate([backbone(pixels).numpy()[0], backbone(mirrored).numpy()[0]])


def test_features_equal_one_image_at_a_time(faces: tuple[Path, list[str]]) -> None:
    folder, names = faces
    found = embed_files(tiny_backbone(), folder, names)
    expected = np.stack([slow_features(tiny_backbone(), folder / name) for name in names])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_batch_size_does_not_matter(faces: tuple[Path, list[str]]) -> None:
    folder, names = faces
    one, other = (embed_files(tiny_backbone(), folder, names, size) for size in (2, 7))
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_every_submodule_keeps_its_training_mode() -> None:
    backbone = tiny_backbone().train()
    frozen = backbone[1].eval()
    assert isinstance(frozen, nn.BatchNorm2d) and frozen.running_mean is not None
    statistics = frozen.running_mean.clone()
    before = [part.training for part in backbone.modules()]
    list(embed(backbone, [torch.randn(2, 3, HEIGHT, WIDTH)]))
    assert [part.training for part in backbone.modules()] == before
    assert torch.equal(frozen.running_mean, statistics)

    def broken() -> Iterator[torch.Tensor]:
        yield torch.randn(2, 3, HEIGHT, WIDTH)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        list(embed(backbone, broken()))
    assert [part.training for part in backbone.modules()] == before


def test_a_folder_of_frames_has_the_mean_of_its_features(
    faces: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, names = faces
    for i in range(3):
        (folder / f"video/0/{i}.png").parent.mkdir(parents=True, exist_ok=True)
        (folder / f"video/0/{i}.png").write_bytes((folder / names[i]).read_bytes())
    rows = [Row("1", names[3], "video/0", False), Row("1", names[5], names[5], True)]
    rows += [row._replace(fold="2") for row in rows]
    pairs = assemble(rows, "here")
    assert pairs.paths == (names[3], "video/0", names[5])
    files, counts = files_of(folder, pairs)
    kept = keep(folder / "kept", network(tiny_backbone()), image_files(folder, files), How(2))
    found = means_of_frames(kept, counts)
    alone = [slow_features(tiny_backbone(), folder / name) for name in names]
    expected = [alone[3], (alone[0] + alone[1] + alone[2]) / 3, alone[5]]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.evaluation.embedding.kept.PART", 2)  # fewer than the frames
        parted = keep(folder / "parts", network(tiny_backbone()), image_files(folder, files), How(2))
        np.testing.assert_allclose(means_of_frames(parted, counts), expected, atol=1e-5)
    (folder / "video/0/1.png").write_bytes(b"no image")
    kept = keep(folder / "kept", network(tiny_backbone()), image_files(folder, files), How(2))
    np.testing.assert_allclose(means_of_frames(kept, counts)[1], (alone[0] + alone[2]) / 2, atol=1e-5)


def test_a_broken_image_costs_itself_and_is_listed(faces: tuple[Path, list[str]], tmp_path: Path) -> None:
    """Bytes that are no image, an image of another size, a file that is gone: a row of NaN each, the rest as before."""
    folder, names = faces
    whole = embed_files(tiny_backbone(), folder, names)
    (folder / names[4]).write_bytes(b"no image")
    Image.new("RGB", (HEIGHT, WIDTH)).save(folder / names[5])
    (folder / names[6]).unlink()
    found = embed_files(tiny_backbone(), folder, names)
    np.testing.assert_allclose(found[:4], whole[:4], atol=1e-6)
    assert np.isnan(found[4:]).all()
    images = image_files(folder, names)
    kept = keep(tmp_path / "kept", network(tiny_backbone()), images, How())
    assert remarks(kept, images, network(tiny_backbone())) == [
        f"3 of 7 images left out: {names[4]} cannot be decoded, {names[5]} is 8 × 12, {names[6]} cannot be read: "
        "wanted images 12 high and 8 wide"
    ]


def test_what_a_network_makes_of_the_place_of_a_broken_image_is_no_matter(faces: tuple[Path, list[str]]) -> None:
    """The place is black, of which a network that divides by the deviation of its pixels makes NaN."""

    class Standardised(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            pixels = images.flatten(1)
            return (pixels - pixels.mean(1, keepdim=True)) / pixels.std(1, keepdim=True)

    folder, names = faces
    (folder / names[1]).write_bytes(b"no image")
    rows = embed_files(Standardised(), folder, names)
    assert np.isnan(rows).all(axis=1).tolist() == [name == names[1] for name in names]


def test_a_kept_part_that_is_not_of_these_images_is_made_again(faces: tuple[Path, list[str]], tmp_path: Path) -> None:
    images, source = image_files(*faces), network(tiny_backbone())
    whole = np.array(keep(tmp_path / "kept", source, images, How()).parts[0])
    (file,) = (tmp_path / "kept").rglob("*.npy")
    for wrong in (whole[:3], whole.astype(np.float64) + 1, whole[0]):
        np.save(file, wrong)
        np.testing.assert_array_equal(keep(tmp_path / "kept", source, images, How()).parts[0], whole)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_ranks_share_the_parts_and_one_that_is_lost_is_not_waited_for(
    faces: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    """Three ranks, of which `lost` (0: none) makes nothing: seven images in four parts."""
    folder, names = faces
    monkeypatch.setattr("pipeline.evaluation.embedding.kept.PART", 2)
    images, home = image_files(folder, names), folder / "kept"
    for rank in sorted({1, 2} - {lost}):
        keep_share(home, network(tiny_backbone()), images, How(3, rank=rank, num_ranks=3))
    made = {file: file.stat().st_mtime_ns for file in home.rglob("*.npy")}
    assert {file.name for file in made} == {f"part-0000{rank + 1}.npy" for rank in {1, 2} - {lost}}
    kept = keep(home, network(tiny_backbone()), images, How(3, rank=0, num_ranks=3))
    np.testing.assert_allclose(kept.rows(np.arange(7)), embed_files(tiny_backbone(), folder, names), atol=1e-6)
    assert len(kept) == 7 and {file: file.stat().st_mtime_ns for file in made} == made


def test_features_without_direction_are_said(faces: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, names = faces
    rows = np.ones((len(names), 4), np.float32)
    rows[[2, 5]] = 0
    source = Table("made", "", rows, {name: i for i, name in enumerate(names)})
    images = image_files(folder, names)
    assert remarks(keep(tmp_path / "kept", source, images, How()), images, source) == [
        f"2 of 7 images are like no other, with features of zeros: {names[2]}, …"
    ]
    source = Table("made", "", rows[:2], {name: i for i, name in enumerate(names[:2])})
    assert remarks(keep(tmp_path / "kept", source, images, How()), images, source) == [
        f"5 of 7 images left out: {', '.join(names[2:])}: wanted an embedding for each image in made"
    ]


def test_crops_of_the_other_published_size_are_fitted(tmp_path: Path) -> None:
    """Whichever part of the list is embedded: the whole list decides. The pixels are those of the crop by hand."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 112, 112, 3), np.uint8)
    names = [f"{i}.png" for i in range(5)]
    for name, image in zip(names, pixels, strict=True):
        Image.fromarray(image if name != "3.png" else image[:, 8:-8]).save(tmp_path / name)
    source = Network("tiny", "", 0, nn.Flatten(), (112, 96))
    images = image_files(tmp_path, names)
    rows = np.concatenate([*source.features(images.part(0, 3), How(2)), *source.features(images.part(3, 5), How(2))])
    by_hand = (pixels[:, :, 8:-8].transpose(0, 3, 1, 2).reshape(5, -1).astype(np.float64) - 127.5) / 128
    good = [0, 1, 2, 4]
    np.testing.assert_allclose(rows[good, : 3 * 112 * 96], by_hand[good], atol=1e-6)
    assert np.isnan(rows[3]).all()
    assert remarks(keep(tmp_path / "kept", source, images, How()), images, source) == [
        "images of 112 × 112 for a network of 112 × 96: 8 columns are cut off each side",
        "1 of 5 images left out: 3.png is 112 × 96: wanted images 112 high and 112 wide",
    ]
    larger = Network("tiny", "", 0, nn.Flatten(), (112, 112))  # with the same weights
    assert keep(tmp_path / "kept", larger, images, How()).parts[0].shape[1] == 2 * 3 * 112 * 112


def test_no_image_at_all_is_refused(faces: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, names = faces
    small = Network("tiny", "", 0, nn.Flatten(), (HEIGHT, WIDTH + 1))
    with pytest.raises(
        ValueError, match=r"got no features of 7 images: p0/a.png is 12 × 8, .* and 2 more: wanted .* 9 wide"
    ):
        keep(tmp_path / "kept", small, image_files(folder, names), How())


def test_broken_weights_are_named(faces: tuple[Path, list[str]]) -> None:
    folder, names = faces
    backbone = tiny_backbone()
    last = backbone[4]
    assert isinstance(last, nn.Linear)
    nn.init.constant_(last.bias, float("nan"))
    with pytest.raises(ValueError, match=r"tiny: got features that are not finite for p0/a.png: the weights"):
        embed_files(backbone, folder, names)


def test_a_part_of_a_list_reads_its_own_images(faces: tuple[Path, list[str]]) -> None:
    folder, names = faces
    images = image_files(folder, names)
    part = images.part(2, 5)
    assert list(part.names) == names[2:5]
    assert [image.tobytes() for image in part.read(slice(1, 3))] == [(folder / n).read_bytes() for n in names[3:5]]
    assert isinstance(part, ImageList)
    (first,) = part.part(1, 3).first(1)
    assert first.tobytes() == (folder / names[0]).read_bytes(), "of the whole list, however small the part"


def test_the_digest_of_files_sees_a_change_whatever_their_names(tmp_path: Path) -> None:
    odd = os.fsdecode(b"Jos\xe9 #.jpg")
    (tmp_path / odd).write_bytes(b"one")
    before = image_files(tmp_path, [odd, "absent.jpg"]).digest
    assert image_files(tmp_path, [odd, "absent.jpg"]).digest == before
    (tmp_path / "copy").mkdir()
    shutil.copy2(tmp_path / odd, tmp_path / "copy" / odd)
    assert image_files(tmp_path / "copy", [odd, "absent.jpg"]).digest != before
    os.utime(tmp_path / odd, ns=(0, 0))
    assert image_files(tmp_path, [odd, "absent.jpg"]).digest != before, "of the same size, but written again"
    (tmp_path / odd).write_bytes(b"other")
    assert image_files(tmp_path, [odd, "absent.jpg"]).digest != before


def test_the_digest_sees_names_values_types_and_shapes_and_nothing_else() -> None:
    tensors = {"a": torch.arange(6.0), "b": torch.tensor(3)}
    digest = digest_of(tensors)
    assert digest == digest_of({"b": torch.tensor(3), "a": torch.arange(12.0)[::2] / 2})
    others = [
        {"a": torch.arange(6.0), "c": torch.tensor(3)},
        {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)},
        {"a": torch.arange(6.0) + 1e-6, "b": torch.tensor(3)},
        {"a": torch.arange(6.0), "b": torch.tensor(3, dtype=torch.int32)},
    ]
    assert digest not in {digest_of(other) for other in others}
