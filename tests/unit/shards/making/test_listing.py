"""How a source differs from a set, against a slow count."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.shards.making.listing import Changes, changes, hashes_of, read_hashes, write_hashes
from pipeline.shards.sources.folder import scan_folder
from tests.shards import noise

NAMES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=12)


def listing(text: str) -> NDArray[np.uint64]:
    """A word for each sample: its key and its identity, a letter each."""
    return np.array([list(word.encode()) for word in text.split()], np.uint64)


def test_a_key_of_another_identity_has_changed() -> None:
    before = listing("a1 a1 a2 b1 c1")
    assert changes(listing("a1 a3 a2 b1 d1 d1"), before) == Changes(came=2, went=1, changed=1)
    assert changes(listing("d1 b1 a2 a3 d1 a1"), before) == Changes(came=2, went=1, changed=1)
    assert changes(before, before) == Changes(0, 0, 0)
    assert changes(before, before[:0]) == Changes(came=5, went=0, changed=0)


@given(now=NAMES.filter(len), before=NAMES)
@settings(deadline=None)
def test_changes_are_those_of_a_slow_count(now: list[tuple[int, int]], before: list[tuple[int, int]]) -> None:
    came = went = changed = 0
    for key in {key for key, _ in now + before}:
        new, old = (Counter(identity for one, identity in names if one == key) for names in (now, before))
        extra, lost = (new - old).total(), (old - new).total()
        changed += min(extra, lost)
        came += max(0, extra - lost)
        went += max(0, lost - extra)
    hashes = (np.array(names, np.uint64).reshape(-1, 2) for names in (now, before))
    assert changes(*hashes) == Changes(came, went, changed)


def test_the_names_of_a_listing_may_have_any_bytes(tmp_path: Path) -> None:
    (tmp_path / "ann").mkdir()
    for name in (b"Jos\xe9.jpg", "José.jpg".encode()):
        (tmp_path / "ann" / os.fsdecode(name)).write_bytes(noise(1))
    source = scan_folder(tmp_path)
    write_hashes(tmp_path / "listing", source)
    kept = read_hashes(tmp_path / "listing").tolist()
    assert kept == hashes_of(source).tolist() and kept[0] != kept[1]
