"""Rendered people in folders, after a run that did not end; what is rendered is noise here."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.rendering.sets.folder import make_people
from pipeline.shards.sources import Read
from tests.shards import noise


class Noise:
    """Two images of each of three people; `read` has those that were asked for."""

    kind, people, images = "noise", 3, 2
    identities = ("a", "b", "c")
    labels = np.repeat(np.arange(3), 2)

    def __init__(self) -> None:
        self.read: list[int] = []

    def read_many(self, samples: np.ndarray[Any, Any]) -> Iterator[Read]:
        for sample in samples.tolist():
            self.read.append(sample)
            yield Read(f"{self.identities[sample // 2]}/{sample}.jpg", noise(sample), {"number": sample})


def rendered(out: Path, **options: Any) -> list[int]:
    """The images that a run rendered."""
    source: Any = Noise()
    make_people(source, out, **options)
    return list(source.read)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.[jc]*")}


@pytest.mark.parametrize("lost", ["a/0.jpg", ".progress/a.json"])
def test_what_a_power_cut_left_empty_is_rendered_again(tmp_path: Path, lost: str) -> None:
    rendered(tmp_path / "whole")

    people = itertools.count(1)

    def stop(_images: int) -> None:
        if next(people) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rendered(tmp_path / "out", progress=stop)
    os.truncate(tmp_path / "out" / lost, 0)
    assert rendered(tmp_path / "out") == [0, 1, 4, 5]
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")


def test_images_are_on_the_disk_before_the_folder_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    there: list[tuple[int, bool]] = []
    monkeypatch.setattr(os, "sync", lambda: there.append((len(list(out.rglob("*.jpg"))), (out / "made.json").exists())))
    rendered(out)
    assert there == [(6, False)]
