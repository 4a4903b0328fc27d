"""The numbers of a data card are those of the attributes."""

from __future__ import annotations

from pipeline.rendering.sets.card import Tally


def test_words_are_shares_and_numbers_quantiles() -> None:
    tally = Tally()
    for number in range(101):
        tally.add({"age": number, "hair": "brown" if number % 4 else "none", "hat": float(number > 91)})
    words, numbers = tally.table()
    assert words.splitlines()[2:] == ["| hair | brown 74.3%, none 25.7% |"]  # 75 and 26 of 101
    assert numbers.splitlines()[2:] == ["| age | 5 | 50 | 95 | 50 |", "| hat | 0 | 0 | 1 | 0.0891 |"]  # 9 of 101
    assert list(Tally().table()) == []
