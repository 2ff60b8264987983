"""Training batches from many stores, and their captions from a database; see `TrainingReader`."""

from collections.abc import Iterator, Sequence
from itertools import chain, repeat

import numpy as np
import torch
from torch import Tensor

from decoder.data.batches import Batch, pad
from decoder.data.readers import TrainingReader, read_ahead
from decoder.data.shard_order import WINDOW, cut, share_of, shuffled
from features.distributed import rank, world_size
from features.sampling import evenly_spaced
from features.store_set import MOST_OPEN, StoreSet
from pipeline.caption_database import CaptionDatabase
from pipeline.captions import Image
from pipeline.vocabulary import EOS, Vocabulary

assert 2 * WINDOW <= MOST_OPEN  # a window is read while images of the one before are in use
_SAMPLED = 32  # shards of which a sample consists
_EXAMPLES = 10_000  # images whose captions are checked


class ShardedReader(TrainingReader):
    """Shuffled training batches from a set of stores; `decoder.data.shard_order` says how.

    Arguments and errors are those of `TrainingReader`.
    """

    def __init__(
        self,
        store: StoreSet,
        table: CaptionDatabase,
        vocabulary: Vocabulary,
        size: int,
        seed: int,
        grid: bool = True,
    ) -> None:
        super().__init__(store, table, vocabulary, size, seed, grid)
        self._train = table.split("train")

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches in an epoch; the last may be smaller."""
        return -(-len(self) // self._size)

    def epoch(self, phase: str, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Yield this process's share of an epoch's batches, from `first_batch` on."""
        full_batches, rest = divmod(len(self), self._size)
        share = share_of(len(self), self._size, rank(), world_size())
        end = share.begin + full_batches * share.full + share.last
        seed = [self._seed, *phase.encode(), epoch]
        views = len(self._store.row_format.views)
        skipped = first_batch * share.full
        order = shuffled(self._train.count_S, views, seed, share.begin, end, skipped)
        is_left = rest > 0 and first_batch <= full_batches  # the last, smaller batch
        sizes = chain(repeat(share.full, full_batches - first_batch), [share.last] * is_left)

        def read(chosen: np.ndarray) -> Batch:
            if chosen.shape[1] == 0:
                return self.batch([0])._replace(idle=True)
            return self.batch(*chosen.tolist())

        yield from read_ahead(read, cut(order, sizes))

    def batch(self, indices: Sequence[int], views: Sequence[int] | None = None) -> Batch:
        """Read images with all their captions; see `features` for the arguments."""
        images = self._train.at(indices)
        captions = self._encoded(images)
        return Batch(
            image_ids=torch.tensor([image.id for image in images]),
            features=self.features(indices, views),
            tokens_BT=pad([caption for of_image in captions for caption in of_image]),
            image_B=torch.from_numpy(np.repeat(np.arange(len(indices)), list(map(len, captions)))),
        )

    def _encoded(self, images: Sequence[Image]) -> list[list[list[int]]]:
        encode = self._vocabulary.encode
        return [[encode(caption.tokens) for caption in image.captions] for image in images]

    def captions_of(self, indices: Sequence[int]) -> list[list[list[int]]]:
        """Return the token ids of the captions of some images."""
        return self._encoded(self._train.at(indices))

    def examples(self) -> list[list[list[int]]]:
        """Return the captions of 10,000 images, or of all if there are fewer."""
        return self.captions_of(self.spread(_EXAMPLES))

    def spread(self, count: int) -> list[int]:
        """Return the indices of `count` evenly spaced images of 32 evenly spaced shards."""
        count_S = self._train.count_S
        shards = np.flatnonzero(count_S)
        after_S = count_S.cumsum()
        images = [
            np.arange(after_S[shard] - count_S[shard], after_S[shard])
            for shard in evenly_spaced(shards.tolist(), _SAMPLED)
        ]
        return evenly_spaced(np.concatenate(images).tolist(), count)

    def word_counts(self) -> Tensor:
        """Return how often each word occurs, as the vocabulary has counted it."""
        counts = torch.tensor(self._vocabulary.counts[EOS:])
        counts[0] = self._train.captions
        return counts
