"""The order of an epoch over shards: every image once, in windows, and exactly repeatable."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoder.data import shard_order
from decoder.data.shard_order import cut, share_of, shuffled

COUNTS = st.lists(st.integers(0, 9), min_size=1, max_size=30).filter(any)


def batches(counts: list[int], size: int, rank: int, processes: int, first: int = 0):
    """The batches of one process, as a reader makes them."""
    images = sum(counts)
    share = share_of(images, size, rank, processes)
    full, rest = divmod(images, size)
    sizes = [share.full] * full + [share.last] * (rest > 0)
    end = share.begin + sum(sizes)
    order = shuffled(np.array(counts), 3, [1, 2], share.begin, end, first * share.full)
    return [batch.tolist() for batch in cut(order, sizes[first:])]


@given(COUNTS, st.integers(1, 12), st.integers(1, 4))
def test_processes_read_every_image_once_and_take_equal_numbers_of_steps(counts, size, processes):
    of_each = [batches(counts, size, rank, processes) for rank in range(processes)]
    assert {len(of_one) for of_one in of_each} == {-(-sum(counts) // size)}
    read = [image for of_one in of_each for images, _ in of_one for image in images]
    assert sorted(read) == list(range(sum(counts)))
    together = [sum(len(batch[0]) for batch in step) for step in zip(*of_each, strict=True)]
    assert all(count == size for count in together[:-1])


@given(COUNTS, st.integers(1, 12), st.integers(1, 3), st.data())
def test_an_epoch_continues_exactly_after_any_batch(counts, size, processes, data):
    rank = data.draw(st.integers(0, processes - 1))
    complete = batches(counts, size, rank, processes)
    first = data.draw(st.integers(0, len(complete)))
    assert batches(counts, size, rank, processes, first) == complete[first:]


def test_few_shards_are_shuffled_fully_and_many_in_windows():
    few = next(shuffled(np.array([5] * shard_order.WINDOW), 1, [0], 0, 40))
    assert few.shape == (2, 5 * shard_order.WINDOW)
    windows = list(shuffled(np.array([100] * 40), 1, [0], 0, 4000))
    assert len(windows) == 40 / shard_order.WINDOW
    for images, _ in windows:
        shards, counts = np.unique(images // 100, return_counts=True)
        assert len(shards) == shard_order.WINDOW
        assert set(counts.tolist()) == {100}
        # Each tenth of a window has images of most of its shards.
        assert len(np.unique(images[:80] // 100)) > shard_order.WINDOW / 2


def test_epochs_differ_and_views_are_drawn():
    one, other = (next(shuffled(np.array([50, 50]), 4, [1, e], 0, 100)) for e in (0, 1))
    assert one[0].tolist() != other[0].tolist()
    assert set(one[1].tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_at_most_one_shard_with_the_next(processes):
    counts = np.random.default_rng(0).integers(50, 150, 64)
    begins = counts.cumsum() - counts
    shards = []
    for rank in range(processes):
        share = share_of(int(counts.sum()), 50, rank, processes)
        end = share.begin + int(counts.sum()) // 50 * share.full + share.last
        images = np.concatenate([w[0] for w in shuffled(counts, 1, [0], share.begin, end)])
        shards.append(set((np.searchsorted(begins, images, side="right") - 1).tolist()))
    for one, other in zip(shards, islice(shards, 1, None), strict=False):
        assert len(one & other) <= 1
