"""Rendered people as a source: any of a million labelled images on demand, each with what is known of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.rendering import Model, Variation
from pipeline.rendering.sets.source import RenderedSource
from pipeline.shards.images import read_header
from tests.renderer import needs_renderer

pytestmark = needs_renderer


@pytest.fixture(scope="module")
def million(model: Model) -> RenderedSource:
    """A million people with one image each."""
    return RenderedSource(model, 7, 0, 1_000_000, 1, (112, 96), Variation())


def test_any_of_a_million_people_is_there_on_demand(million: RenderedSource) -> None:
    assert len(million.identities) == len(million.labels) == len(set(million.identities)) == 1_000_000
    assert million.identities == sorted(million.identities)
    last = replace(million, first=999_999, people=1)
    assert million.key(999_999) == last.key(0) == "r7-00999999/0000.jpg"
    assert million.read(999_999) == last.read(0)
    some = np.random.default_rng(0).choice(1_000_000, 40, replace=False)
    images = [image for _, image, _ in million.read_many(some) if isinstance(image, bytes)]
    assert len(set(images)) == 40
    assert {read_header(image) for image in images} == {("jpg", 112, 96)}


def test_reading_many_is_reading_one_by_one_with_what_is_known(million: RenderedSource) -> None:
    source = replace(million, people=3, images=4)
    assert source.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    samples = np.array([11, 0, 6])
    for sample, (key, image, fields) in zip(samples.tolist(), source.read_many(samples), strict=True):
        who, photo = source.person(sample // 4), source.photo(sample)
        assert (key, image) == (source.key(sample), source.read(sample))
        assert key == f"r7-{sample // 4:08d}/{sample % 4:04d}.jpg"
        known = {**who.attributes, **photo.attributes, "landmarks": fields["landmarks"]}
        assert {name: value or "none" if isinstance(value, str) else value for name, value in known.items()} == fields
        assert list(fields) == sorted(fields)
        np.testing.assert_allclose(fields["landmarks"], photo.landmarks, atol=5e-4)


def test_every_argument_is_in_the_digest(million: RenderedSource) -> None:
    others = [
        replace(million, **change)
        for change in (
            {"seed": 8},
            {"first": 1},
            {"people": 2},
            {"images": 2},
            {"size": (112, 112)},
            {"variation": Variation(pose=0.5)},
            {"variation": Variation(light=False)},
        )
    ]
    assert len({source.digest() for source in (million, *others)}) == 8
