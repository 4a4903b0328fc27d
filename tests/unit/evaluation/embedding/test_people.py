"""People in shards and in folders: the same centres, by hand, without the images that give no features."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.evaluation.embedding.people import centres, people_in
from pipeline.evaluation.embedding.source import How, Network
from tests.faces import write_shards


class MeanColour(nn.Module):
    """Three numbers for an image; enough to compute centres by hand."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3))


def test_centres_are_the_same_from_shards_and_folders_and_leave_out_what_does_not_decode(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, identities=5, images=3)
    folder = tmp_path / "faces"
    source, how = Network("mean", "", 0, MeanColour(), (32, 32)), How(4)
    one, from_shards = centres(source, people_in(shards), how)[0], people_in(shards)
    people = people_in(folder)
    other, undecodable = centres(source, people, how)
    order = [from_shards.names.index(name) for name in people.names]
    np.testing.assert_allclose(other, one[order], atol=1e-6)
    assert undecodable == 0
    assert [len(people.of(person, 2)) for person in range(5)] == [2] * 5

    colours = np.concatenate(list(source.features(people.images, how)))[:, :3]  # of the image; then of its mirror
    unit = nn.functional.normalize(torch.from_numpy(colours).double(), dim=1)
    for person in range(5):
        features = torch.cat([unit[people.label == person]] * 2, dim=1).sum(0)
        np.testing.assert_allclose(other[person], features / features.norm(), atol=1e-5)

    for image in ("0000", "0001", "0002"):
        (folder / f"person001/{image}.jpg").write_bytes(b"no image")
    (folder / "person002/0000.jpg").write_bytes(b"no image")
    torn = people_in(folder)
    assert torn.digest != people.digest
    rest, undecodable = centres(source, torn, how)
    assert undecodable == 4
    assert not rest[1].any()
    np.testing.assert_allclose(rest[[0, 3, 4]], other[[0, 3, 4]], atol=1e-6)
    features = torch.cat([unit[people.label == 2][1:]] * 2, dim=1).sum(0)
    np.testing.assert_allclose(rest[2], features / features.norm(), atol=1e-5)

    (folder / "person003/0000.jpg").unlink()  # after it was listed
    assert centres(source, torn, how)[1] == 5
    assert [len(image) > 0 for image in torn.of(3, 3)] == [False, True, True]
