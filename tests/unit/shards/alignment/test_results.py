"""The table of crops and the list beside it."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.shards.alignment.results import Result, done_keys, write_lists

LANDMARKS = [[12.5, 34.75]] * 5


def results(photos: int) -> Iterator[Result]:
    """A crop of each photograph but every hundredth."""
    for number in range(photos):
        key, person = f"ann/{number}.jpg", "ann"
        if number % 100:
            yield Result(key, "aligned", {"quality": number}, key, person, [1.0, 2.0, 3.0, 4.0], LANDMARKS)
        else:
            yield Result(key, "no face", {})


@pytest.mark.parametrize("is_added", [False, True])
def test_lists_are_written_a_row_at_a_time(tmp_path: Path, is_added: bool) -> None:
    photos = 10_000
    keys = [f"ann/{number}.jpg" for number in range(photos)]
    new = frozenset(keys)
    if is_added:
        write_lists(tmp_path / "out", lambda: results(photos), new, [], new)
        new = frozenset(keys[:100])
    tracemalloc.start()
    write_lists(tmp_path / "out", lambda: results(len(new)), new, [], frozenset(keys))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak / photos < 400  # bytes; the rows alone would be 2,500
    assert done_keys(tmp_path / "out") == set(keys)
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 1 + photos * 99 // 100
