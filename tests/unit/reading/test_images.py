"""Lists of images: decoded a batch at a time and in order; what cannot be decoded or read is found."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.reading.dali import Decoder, EncodedBatch
from pipeline.reading.images import Images, decode_images, read_image
from tests.unit.reading.test_dali import BAD, H, W, smooth_jpeg


@pytest.fixture
def decoder() -> Decoder:
    return Decoder(4, H, W, torch.device("cpu"), threads=1)


@pytest.mark.parametrize("count", [1, 4, 9])
def test_batches_cover_the_list_in_order(decoder: Decoder, count: int) -> None:
    images = [smooth_jpeg(seed) for seed in range(count)]
    found = list(decode_images(decoder, count, lambda part: images[part]))
    places = [np.arange(count)[part] for part, _ in found]
    assert np.concatenate(places).tolist() == list(range(count))
    assert [len(batch.images) for _, batch in found] == [len(place) for place in places]
    alone = [next(iter(decoder.decode([EncodedBatch([image])]))).images for image in images]
    assert torch.equal(torch.cat([batch.images for _, batch in found]), torch.cat(alone))


def test_no_images_are_no_batches(decoder: Decoder) -> None:
    assert list(decode_images(decoder, 0, lambda part: [smooth_jpeg(0)][part])) == []


def test_what_could_not_be_decoded_is_told_by_its_place(decoder: Decoder) -> None:
    images = [smooth_jpeg(seed) for seed in range(6)]
    images[1], images[4] = BAD["garbage"], BAD["wrong size"]
    good = [batch.good.tolist() for _, batch in decode_images(decoder, 6, lambda part: images[part])]
    assert good == [[True, False, True, True], [False, True]]


def test_a_file_is_read_whole_and_a_missing_one_is_named(tmp_path: Path, decoder: Decoder) -> None:
    path = tmp_path / "face.jpg"
    path.write_bytes(smooth_jpeg(3).tobytes())
    assert np.array_equal(read_image(path), smooth_jpeg(3))

    def read(part: slice) -> Images:
        return [read_image(file) for file in [path, tmp_path / "none.jpg"][part]]

    with pytest.raises(ValueError, match=r"none.jpg: cannot be read: No such file"):
        list(decode_images(decoder, 2, read))
