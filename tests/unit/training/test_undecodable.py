"""The share of undecodable samples that ends a run, and the words in which it does."""

from __future__ import annotations

import pytest

from pipeline.shards.manifest import ShardError
from pipeline.training.undecodable import UndecodableLimit
from stages.train import REFUSALS


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
    assert str(caught.value).count("; ") == 10  # nine between ten names, one before


def test_the_stage_refuses_with_the_code_of_bad_data() -> None:
    assert issubclass(ShardError, REFUSALS)
