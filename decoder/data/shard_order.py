"""The order of an epoch over many shards: shards are shuffled, and rows within a few of them.

A full shuffle of a hundred million images would need their numbers in memory, and a store opened
for almost every row. Here an epoch is a random permutation of the shards. It is divided evenly
among the processes, so each has shards of its own, and shares at most one with the next process. A
process goes through its shards `WINDOW` at a time, and shuffles the images of a window together.

So `WINDOW` shards or fewer are shuffled fully. Memory depends on the size of the shards, not on
their number: 16 bytes for each image of a window, and an open store for each of its shards.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

WINDOW = 8


class Share(NamedTuple):
    """What one process reads of an epoch."""

    begin: int
    """The first of its images, by the place in the epoch's permutation of shards."""
    full: int
    """Its images in a full batch."""
    last: int
    """Its images in the last batch, if that is smaller."""


def share_of(images: int, size: int, rank: int, processes: int) -> Share:
    """Return what process `rank` reads of an epoch in batches of `size` images.

    The processes divide each batch as evenly as possible, so they take the same number of steps.
    """
    batches, rest = divmod(images, size)
    shares = [
        (len(range(process, size, processes)), len(range(process, rest, processes)))
        for process in range(rank + 1)
    ]
    begin = sum(batches * full + last for full, last in shares[:rank])
    return Share(begin, *shares[rank])


def shuffled(
    count_S: np.ndarray, views: int, seed: Sequence[int], begin: int, end: int, skipped: int = 0
) -> Iterator[np.ndarray]:
    """Yield images of an epoch in random order, a window at a time.

    Args:
        count_S: int64 [S], number of images in each shard.
        views: number of stored views; one is drawn at random for each image.
        seed: of the epoch.
        begin: the first image, by its place in the permutation of the shards.
        end: the place after the last image.
        skipped: number of first images to leave out.

    Yields:
        int64 [2, n], the index of each image among those of all shards, and its view.
    """
    order_S = np.random.default_rng(seed).permutation(len(count_S))
    index_S = (count_S.cumsum() - count_S)[order_S]  # of each shard's first image
    after_S = count_S[order_S].cumsum()
    place_S = after_S - count_S[order_S]
    own = np.flatnonzero((after_S > begin) & (place_S < end))
    for start in range(0, len(own), WINDOW):
        window = own[start : start + WINDOW]
        first = np.maximum(begin - place_S[window], 0)
        stop = np.minimum(end, after_S[window]) - place_S[window]
        size = int((stop - first).sum())
        if skipped >= size:
            skipped -= size
            continue
        parts = zip(
            (index_S[window] + first).tolist(), (index_S[window] + stop).tolist(), strict=True
        )
        images = np.concatenate([np.arange(*part) for part in parts])
        generator = np.random.default_rng([*seed, begin, start])
        chosen = np.stack((generator.permutation(images), generator.integers(views, size=size)))
        yield chosen[:, skipped:]
        skipped = 0


def cut(parts: Iterable[np.ndarray], sizes: Iterable[int]) -> Iterator[np.ndarray]:
    """Cut arrays [2, n] that follow one another into arrays of these sizes."""
    parts = iter(parts)
    rest = np.empty((2, 0), np.int64)
    for size in sizes:
        while rest.shape[1] < size:
            rest = np.concatenate((rest, next(parts)), axis=1)
        yield rest[:, :size]
        rest = rest[:, size:]
