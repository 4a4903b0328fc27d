"""How orders mix: batches counted one by one, and the streams of a run by default."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.reading.mixing import MOST, mixing_by_default, mixing_of, streams_that_mix
from pipeline.reading.order import Order
from pipeline.shards.format.manifest import Made, Manifest, TarEntry
from tests.faces import write_shards


def set_of(tars: Sequence[tuple[str, int]]) -> Manifest:
    """A set of tars of so many samples each, from the folders of other sets."""
    entries = tuple(TarEntry(f"{folder}/{number}.tar", samples, 1, "") for number, (folder, samples) in enumerate(tars))
    return Manifest(
        samples=sum(samples for _, samples in tars),
        identities=1000,
        image_height=8,
        image_width=8,
        tars=entries,
        identities_sha256="",
        index_sha256="",
        set_aside=0,
        made=Made("merge", "", 0, 100, ""),
    )


NINE_TO_ONE = set_of([("../large", 50)] * 180 + [("../small", 50)] * 20)


def order_of(manifest: Manifest, batch: int, streams: int) -> Order:
    return Order(tuple(tar.samples for tar in manifest.tars), 0, batch, streams)


def test_nine_to_one_is_mixed_by_default_and_not_by_one_stream() -> None:
    labels = np.random.default_rng(0).integers(0, 1000, NINE_TO_ONE.samples)
    default = streams_that_mix(NINE_TO_ONE, 128, Order.window)
    assert default == 16
    mixed = mixing_of(NINE_TO_ONE, labels, order_of(NINE_TO_ONE, 128, default))
    unmixed = mixing_of(NINE_TO_ONE, labels, order_of(NINE_TO_ONE, 128, 1))
    assert mixed.without_smallest == 0
    assert 0.5 < unmixed.without_smallest < 0.75
    # The identities of a set that was shuffled once are mixed in any order.
    assert mixed.identities == pytest.approx(mixed.shuffled, rel=0.02)


def test_batches_are_counted_as_by_hand() -> None:
    manifest = set_of([("../a", 7), ("../b", 3), ("../a", 5), ("../b", 4)])
    labels = np.array([*[0] * 7, *[1] * 3, *[2] * 5, *[3] * 4])
    order = Order((7, 3, 5, 4), 3, 2, 1, window=1)
    of_b = {*range(7, 10), *range(15, 19)}
    batches = [set(order.batch(step).tolist()) for step in range(order.steps_per_epoch)]
    found = mixing_of(manifest, labels, order)
    assert found.without_smallest == sum(not batch & of_b for batch in batches) / len(batches)
    assert found.identities == sum(len({labels[i] for i in batch}) for batch in batches) / len(batches)
    assert found.shuffled == pytest.approx(sum(1 - (1 - 2 / 19) ** count for count in (7, 3, 5, 4)))


def test_a_set_in_the_order_of_its_people_is_seen() -> None:
    manifest = set_of([(".", 100)] * 40)
    labels = np.repeat(np.arange(400), 10)
    few, many = (mixing_of(manifest, labels, order_of(manifest, 100, streams)) for streams in (1, 10))
    assert few.identities < 0.5 * few.shuffled
    assert many.identities == pytest.approx(many.shuffled, rel=0.02)
    assert few.without_smallest == many.without_smallest == 0


@given(
    tars=st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=300),
    batch=st.integers(1, 3000),
    window=st.integers(1, 8),
)
def test_streams_divide_the_batch_and_are_eight_or_more_if_they_can_be(
    tars: list[str], batch: int, window: int
) -> None:
    streams = streams_that_mix(set_of([(name, 10) for name in tars]), batch, window)
    assert batch % streams == 0
    assert streams <= MOST
    assert streams >= 8 or not any(batch % number == 0 for number in range(8, MOST + 1))


@pytest.mark.parametrize(("small", "streams"), [(100, 8), (20, 16), (10, 32), (1, 64)])
def test_the_smaller_the_smallest_set_the_more_streams(small: int, streams: int) -> None:
    tars = [("../large", 50)] * 200 + [("../small", 50)] * small
    assert streams_that_mix(set_of(tars), 512, 4) == streams


def test_a_set_on_the_disk_is_judged_by_its_default(tmp_path: Path) -> None:
    folder = write_shards(tmp_path)
    mixing, samples = mixing_by_default(folder), Manifest.load(folder).samples
    assert mixing.order.global_batch == samples
    assert f"a batch of {samples} holds" in str(mixing)
