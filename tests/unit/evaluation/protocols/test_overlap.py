"""People in both sets: candidates as by brute force, decisions that survive, faults named."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.evaluation.embedding.people import People, centres, people_in
from pipeline.evaluation.protocols.overlap import (
    NEAREST,
    Candidate,
    excluded_people,
    find_candidates,
    merge,
    read_decisions,
    write_decisions,
)
from pipeline.reading.dali import Decoder, EncodedBatch
from tests.faces import write_shards

HEADER = "train_person\ttest_person\tsimilarity\tdecision\n"


def test_candidates_are_those_of_a_float64_brute_force() -> None:
    generator = np.random.default_rng(0)
    train, test = (generator.normal(size=(count, 6)) for count in (40, 15))
    train, test = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (train, test))
    train[3] = test[2] = 0  # nobody could be decoded
    expected = []
    for j in range(15):
        scores = sorted(((float(train[i] @ test[j]), i) for i in range(40)), reverse=True)[:NEAREST]
        expected += [(f"a{i}", f"b{j}", score) for score, i in scores if score > 0.3 and i != 3]
    expected.sort(key=lambda pair: -pair[2])
    names = [f"a{i}" for i in range(40)], [f"b{j}" for j in range(15)]
    found = find_candidates(train.astype(np.float32), names[0], test.astype(np.float32), names[1], 0.3)
    assert [(pair.train, pair.test) for pair in found] == [pair[:2] for pair in expected]
    np.testing.assert_allclose([pair.similarity for pair in found], [pair[2] for pair in expected], atol=6e-5)
    assert find_candidates(train[3:4], ["a"], test, names[1], 0.0) == []


def test_decisions_are_kept_and_completed(tmp_path: Path) -> None:
    decided = [
        Candidate("ann", "anna", 0.7, "same"),
        Candidate("bob", "rob", 0.6, "different"),
        Candidate("eve", "eva", 0.5),  # still open, and no candidate any more
    ]
    file = tmp_path / "decisions.tsv"
    write_decisions(file, decided)
    assert read_decisions(file) == decided
    found = [Candidate("ann", "anna", 0.65), Candidate("joe", "jo", 0.9)]
    assert merge(found, read_decisions(file)) == [
        Candidate("joe", "jo", 0.9),
        Candidate("ann", "anna", 0.65, "same"),
        Candidate("bob", "rob", 0.6, "different"),
    ]
    assert excluded_people(file) == {"anna"}


def test_an_editor_may_strip_the_last_tab(tmp_path: Path) -> None:
    file = tmp_path / "decisions.tsv"
    file.write_text(HEADER + "ann\tanna\t0.7\n\nbob\trob\t0.6\t same \r\n")
    assert [pair.decision for pair in read_decisions(file)] == ["", "same"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"got the header '', wanted train_person, test_person"),
        ("a\tb\n", r"got the header 'a\\tb', wanted train_person"),
        (HEADER + "ann\tanna\n", r"line 2: got 2 values, wanted 4"),
        (HEADER + "ann\tanna\t0.5\tyes\n", r"line 2: decision: got 'yes', wanted same, different or nothing"),
        (HEADER + "ann\tanna\t0.5\t\nbob\tb\tx\t\n", r"line 3: similarity: got 'x', wanted a number"),
    ],
)
def test_a_faulty_decision_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "decisions.tsv"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_decisions(file)
    assert str(file) in str(caught.value)
    with pytest.raises(ValueError, match="cannot read"):
        read_decisions(tmp_path / "none.tsv")


class MeanColour(nn.Module):
    """Three numbers for an image; enough to compute centres by hand."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3))


def test_centres_are_the_same_from_shards_and_folders_and_leave_out_what_does_not_decode(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, identities=5, images=3)
    folder = tmp_path / "faces"
    decoder = Decoder(4, 32, 32, torch.device("cpu"))
    one, from_shards = centres(MeanColour(), people_in(shards), decoder)[0], people_in(shards)
    people = people_in(folder)
    other, undecodable = centres(MeanColour(), people, decoder)
    order = [from_shards.names.index(name) for name in people.names]
    np.testing.assert_allclose(other, one[order], atol=1e-6)
    assert undecodable == 0
    assert [len(people.of(person, 2)) for person in range(5)] == [2] * 5

    pixels = torch.stack([batch for got in decoder.decode(_batches(people)) for batch in got.images]).double()
    unit = nn.functional.normalize(pixels.mean(dim=(2, 3)), dim=1)
    for person in range(5):
        features = torch.cat([unit[people.label == person]] * 2, dim=1).sum(0)
        np.testing.assert_allclose(other[person], features / features.norm(), atol=1e-5)

    for image in ("0000", "0001", "0002"):
        (folder / f"person001/{image}.jpg").write_bytes(b"no image")
    (folder / "person002/0000.jpg").write_bytes(b"no image")
    torn = people_in(folder)
    assert torn.digest != people.digest
    rest, undecodable = centres(MeanColour(), torn, decoder)
    assert undecodable == 4
    assert not rest[1].any()
    np.testing.assert_allclose(rest[[0, 3, 4]], other[[0, 3, 4]], atol=1e-6)
    features = torch.cat([unit[people.label == 2][1:]] * 2, dim=1).sum(0)
    np.testing.assert_allclose(rest[2], features / features.norm(), atol=1e-5)


def _batches(people: People) -> Iterator[EncodedBatch]:
    for start in range(0, len(people.label), 4):
        images = people.read(list(range(start, min(start + 4, len(people.label)))))
        yield EncodedBatch(images)
