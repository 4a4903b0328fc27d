"""Undecodable samples are remembered, and a share of them ends a run in words that name some."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.reading.tars import ShardSet
from pipeline.shards.format.manifest import ShardError
from pipeline.training.undecodable import Remembered, UndecodableLimit
from stages.train import REFUSALS
from tests.shards import made, plan_of, write_people


def limit(share: float) -> UndecodableLimit:
    return UndecodableLimit(share, lambda sample: f"sample {sample}", None)


def test_a_few_bad_images_of_a_first_small_batch_are_no_share_yet() -> None:
    one = limit(0.01)
    one.add(range(10), 10, 32)
    with pytest.raises(ShardError, match=r"11 of 64 samples .* at most 1.00% \(of 1000 .* sample 0; sample 1; "):
        one.add([99], 1, 32)


def test_the_share_is_of_all_that_was_read() -> None:
    one = limit(0.01)
    for _ in range(10):
        one.add([], 0, 500)
    one.add([3], 50, 500)
    with pytest.raises(ShardError, match="56 of 5500 samples"):
        one.add([4], 6, 0)


def test_none_and_all_may_be_undecodable() -> None:
    limit(1).add(range(5000), 5000, 5000)
    none = limit(0)
    none.add([], 0, 5000)
    with pytest.raises(ShardError, match=r"1 of 5001 samples .*; among them sample 7. Find"):
        none.add([7], 1, 1)


def test_a_sample_is_named_once_and_no_more_than_ten_are() -> None:
    with pytest.raises(ShardError) as caught:
        limit(0).add([5, 5, *range(10, 40)], 32, 32)
    assert str(caught.value).count("sample 5") == 1
    assert str(caught.value).count("; sample ") == 9  # between ten names


def test_the_stage_refuses_with_the_code_of_bad_data() -> None:
    assert issubclass(ShardError, REFUSALS)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    root = tmp_path_factory.mktemp("set")
    made(plan_of(write_people(root / "faces"), root / "set"))
    return ShardSet(root / "set")


def test_a_sample_is_reported_once_and_known_to_the_next_start(
    shards: ShardSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "undecodable.tsv"
    first = Remembered(file, shards, None)
    assert first.samples == set()
    first.add([7, 3], 40)
    first.add([7], 42)
    assert [message.partition(" (")[0] for message in caplog.messages] == [
        "cannot decode sample 3",
        "cannot decode sample 7",
    ]
    assert all(message.endswith(": left out from step 40 on") for message in caplog.messages)
    assert first.samples == Remembered(file, shards, None).samples == {3, 7}
    assert caplog.messages[2:] == [f"{file}: leaving out 2 samples that could not be decoded before"]


def test_a_list_that_cannot_be_written_or_read_ends_nothing(
    shards: ShardSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    remembered = Remembered(tmp_path / "nowhere" / "u", shards, None)
    remembered.add([7], 1)
    assert remembered.samples == {7}
    assert caplog.messages[1:] == [f"{tmp_path}/nowhere/u: not written: No such file or directory; training continues"]
    (tmp_path / "folder").mkdir()
    assert Remembered(tmp_path / "folder", shards, None).samples == set()
    assert caplog.messages[2:] == [f"{tmp_path}/folder: Is a directory; training continues without it"]
