"""The table of crops and the list beside it."""

import os
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.files import LONGEST_NAME, write_file
from pipeline.shards.alignment.results import Result, crop_path, done_keys, write_lists

LANDMARKS = [[12.5, 34.75]] * 5


@pytest.mark.parametrize("letter", ["x", "健", "\udcff"])
def test_the_path_of_a_crop_is_no_longer_than_a_name_may_be(tmp_path: Path, letter: str) -> None:
    keys = [letter * 300 + end for end in ("1.jpg", "2.jpg", "3.png")]
    paths = [crop_path(key, letter * 300) for key in keys]
    assert len(set(paths)) == 3 and len({Path(path).parent for path in paths}) == 1
    for path in paths:
        assert path.endswith(".jpg")
        (tmp_path / path).parent.mkdir(exist_ok=True)
        write_file(tmp_path / path, b"crop", synced=False)
    longest = letter * (LONGEST_NAME // len(os.fsencode(letter)))
    assert crop_path(f"ann/{longest[:-4]}.jpg", "ann") == f"ann/{longest[:-4]}.jpg"


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
