"""The table of crops and the list beside it."""

import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.shards.alignment.results import Result, crop_path, done_keys, write_lists

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


def test_the_path_of_a_crop_stays_in_its_folder() -> None:
    keys = ["1.jpg", "x/ann/1.jpg", "/abs/1.jpg", "../1.jpg", ".1.png", "a.tar:1", "ann/a%2Fb.jpg", "ann/a/b.jpg"]
    paths = [crop_path(key, "ann") for key in keys]
    assert paths[0] == crop_path("ann/1.jpg", "ann") == "ann/1.jpg"
    assert len(set(paths)) == len(keys)
    for path in [*paths, crop_path("1.jpg", ".."), crop_path("1.jpg", "a/b")]:
        assert re.fullmatch(r"[^/.][^/]*/[^/.][^/]*\.jpg", path)
