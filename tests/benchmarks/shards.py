"""Shards for benchmarks: JPEGs of about 5 KB with noise, made in this process."""

from __future__ import annotations

from pathlib import Path

from pipeline.shards.making.build import make_shards
from pipeline.shards.making.plan import make_plan
from pipeline.shards.sources.detect import open_source
from tests.faces import write_noisy_faces


def make_shards_of(folder: Path, people: int, images: int, height: int = 112, width: int = 96) -> Path:
    """The shards of `people` × `images` JPEGs, in tars of 1,000; they are made once."""
    out = folder / "shards"
    if not out.exists():
        write_noisy_faces(folder / "faces", people, images, height=height, width=width)
        plan = make_plan(open_source(folder / "faces"), out, seed=0, samples_per_tar=1000, size=None)
        make_shards(plan, workers=2)
    return out
