"""The order's guarantees, by properties."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.reading.order import Ids, Order


@st.composite
def orders(draw: st.DrawFn) -> Order:
    tars = tuple(draw(st.lists(st.integers(1, 40), min_size=1, max_size=12)))
    batch = draw(st.integers(1, min(24, sum(tars))))
    streams = draw(st.sampled_from([s for s in range(1, batch + 1) if batch % s == 0]))
    return Order(tars, draw(st.integers(0, 2**32)), batch, streams, draw(st.integers(1, 5)))


def epoch_ids(order: Order, epoch: int) -> Ids:
    first = epoch * order.steps_per_epoch
    return np.concatenate([order.batch(first + t) for t in range(order.steps_per_epoch)])


@given(orders(), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_each_sample_at_most_once_an_epoch_and_all_but_the_remainder_seen(order: Order, epoch: int) -> None:
    ids = epoch_ids(order, epoch)
    assert len(np.unique(ids)) == len(ids)
    assert 0 <= ids.min() and ids.max() < order.samples
    assert order.samples - len(ids) < order.global_batch


@given(orders(), st.integers(0, 50))
@settings(max_examples=100, deadline=None)
def test_every_rank_count_that_divides_gives_the_same_global_batches(order: Order, step: int) -> None:
    whole = order.batch(step)
    for num_ranks in (n for n in range(1, order.global_batch + 1) if order.global_batch % n == 0):
        parts = [order.rank_batch(step, rank, num_ranks) for rank in range(num_ranks)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


@given(orders(), st.integers(0, 50))
@settings(max_examples=50, deadline=None)
def test_micro_batches_are_the_same_on_every_rank_count(order: Order, step: int) -> None:
    whole = order.batch(step)
    for parts in (n for n in range(1, order.global_batch + 1) if order.global_batch % n == 0):
        for num_ranks in (n for n in range(1, parts + 1) if parts % n == 0):
            accumulation = parts // num_ranks
            shares = [
                np.split(order.rank_batch(step, rank, num_ranks, accumulation), accumulation)
                for rank in range(num_ranks)
            ]
            micro_batches = [np.concatenate([share[number] for share in shares]) for number in range(accumulation)]
            np.testing.assert_array_equal(np.concatenate(micro_batches), whole)


@given(orders(), st.integers(0, 50))
@settings(max_examples=50, deadline=None)
def test_a_position_is_reached_without_replaying(order: Order, step: int) -> None:
    fresh = Order(order.samples_per_tar, order.seed, order.global_batch, order.streams, order.window)
    for earlier in range(step):
        order.batch(earlier)
    np.testing.assert_array_equal(order.batch(step), fresh.batch(step))


def naive_batch(order: Order, step: int) -> list[int]:
    """The epoch written out whole, by lists, as the module's docstring describes it."""

    def shuffled(items: list[int], part: int) -> list[int]:
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([order.seed, epoch, part])))
        return [items[i] for i in generator.permutation(len(items))]

    epoch, t = divmod(step, order.steps_per_epoch)
    members, first = [], 0
    for count in order.samples_per_tar:
        members.append(list(range(first, first + count)))
        first += count
    tars = shuffled(list(range(len(members))), 0)
    sequence: list[int] = []
    for w in range(0, len(tars), order.window):
        inside = [i for tar in tars[w : w + order.window] for i in members[tar]]
        sequence += shuffled(inside, w // order.window + 1)
    sequence = sequence[: order.steps_per_epoch * order.global_batch]
    piece, share = len(sequence) // order.streams, order.global_batch // order.streams
    return [sequence[s * piece + t * share + i] for s in range(order.streams) for i in range(share)]


@given(orders(), st.integers(0, 60))
@settings(max_examples=100, deadline=None)
def test_equals_the_epoch_written_out(order: Order, step: int) -> None:
    assert order.batch(step).tolist() == naive_batch(order, step)


def test_different_epochs_and_seeds_differ_and_drop_other_samples() -> None:
    order = Order((50, 50, 50, 53), seed=1, global_batch=20, window=2)
    first, second = epoch_ids(order, 0), epoch_ids(order, 1)
    assert not np.array_equal(first, second)
    assert set(first) != set(second)
    assert not np.array_equal(first, epoch_ids(Order(order.samples_per_tar, 2, 20, window=2), 0))


def test_streams_are_near_sequential() -> None:
    """Between two steps a stream stays inside its window of tars, but for the steps that cross into the next."""
    per_tar, tars, window, streams, batch = 100, 64, 4, 4, 64
    order = Order((per_tar,) * tars, 7, batch, streams, window)
    share = batch // streams
    touched = 0
    for step in range(order.steps_per_epoch):
        for s in range(streams):
            touched += len(np.unique(order.batch(step)[s * share : (s + 1) * share] // per_tar))
    windows_in_a_share = np.array(
        [len(np.unique(order.batch(t)[:share] // per_tar)) for t in range(order.steps_per_epoch)]
    )
    assert windows_in_a_share.max() <= 2 * window
    # a random order over all tars would touch min(share, tars) distinct tars nearly every time
    assert touched / (order.steps_per_epoch * streams) <= window + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"global_batch": 11}, "global_batch: got 11, but the set holds 10 samples"),
        ({"streams": 3}, "streams: got 3, wanted a divisor of global_batch 4"),
        ({"streams": 0}, "streams: got 0"),
        ({"window": 0}, "window: got 0, wanted at least 1 tar"),
    ],
)
def test_impossible_orders_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Order(**{"samples_per_tar": (5, 5), "seed": 0, "global_batch": 4, **change})  # type: ignore[arg-type]


def test_ranks_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="global_batch: got 4, wanted a multiple of 3 ranks"):
        Order((10,), 0, 4).rank_batch(0, 0, 3)


class Counted:
    """Counts the permutations that an order computes: each starts a Philox generator of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        original = np.random.Philox

        def counting(*args: Any) -> np.random.Philox:
            self.count += 1
            return original(*args)

        monkeypatch.setattr(np.random, "Philox", counting)


@pytest.mark.parametrize(
    ("streams", "per_tar", "window"), [(1, 50, 4), (100, 50, 4), (300, 50, 4), (600, 50, 4), (600, 3, 1)]
)
def test_a_window_is_shuffled_once_an_epoch_whatever_the_number_of_streams(
    monkeypatch: pytest.MonkeyPatch, streams: int, per_tar: int, window: int
) -> None:
    tars = 200 * 50 // per_tar
    order = Order((per_tar,) * tars, seed=1, global_batch=600, streams=streams, window=window)
    counted = Counted(monkeypatch)
    epochs = 3
    for step in range(epochs * order.steps_per_epoch):
        order.batch(step)
    windows = -(-order.steps_per_epoch * order.global_batch // (per_tar * window))  # but for the remainder's
    # the tars themselves, every window, and once more those in which a stream ends and the next one starts
    again = min(streams - 1, windows)
    assert epochs * (1 + windows) <= counted.count <= epochs * (1 + windows + again)


def test_a_batch_of_another_thread_costs_no_more_than_its_own_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    order = Order((50,) * 200, seed=1, global_batch=600, streams=300)
    order.batch(3)
    counted = Counted(monkeypatch)
    order.batch(3)
    assert counted.count == 0
    order.batch(0)
    assert counted.count <= 50
