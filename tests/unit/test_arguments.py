"""What stages share in how they read and print."""

import pytest

from stages.arguments import size_in_words


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0.0 kB"), (1_234, "1.2 kB"), (99_999, "100.0 kB"), (100_000, "0.1 MB"), (2 * 10**9, "2,000.0 MB")],
)
def test_a_small_file_is_not_one_of_nothing(size: int, words: str) -> None:
    assert size_in_words(size) == words
