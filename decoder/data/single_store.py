"""Training batches from one store, and their captions in memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from decoder.data.batches import Batch, pad
from decoder.data.readers import TrainingReader, expect_captions, read_ahead
from decoder.data.weights import WeightedDraws
from features.distributed import rank, world_size
from features.sampling import evenly_spaced
from features.store_set import Store
from pipeline.captions import CaptionTable
from pipeline.vocabulary import EOS, UNK, Vocabulary


class SingleStoreReader(TrainingReader):
    """Training batches from one store; the captions are in memory.

    Under torchrun a process reads every `world_size`th image of a batch, beginning at its rank.

    The arguments that are not named here are those of `TrainingReader`.

    Args:
        weights: how often the images of each source are drawn in an epoch; once by default.

    Raises:
        UserError: as `SplitReader`, an image has no caption, or a weight names an unknown source.
    """

    def __init__(
        self,
        store: Store,
        table: CaptionTable,
        vocabulary: Vocabulary,
        size: int,
        seed: int,
        grid: bool = True,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(store, table, vocabulary, size, seed, grid)
        expect_captions(self)
        self._draws = WeightedDraws([image.source for image in self.images], weights or {})
        self.captions = [
            [vocabulary.encode(caption.tokens) for caption in image.captions]
            for image in self.images
        ]

    def captions_of(self, indices: Sequence[int]) -> list[list[list[int]]]:
        """Return the token ids of the captions of some images."""
        return [self.captions[index] for index in indices]

    def examples(self) -> list[list[list[int]]]:
        """Return the captions of all images, for checks."""
        return self.captions

    def spread(self, count: int) -> list[int]:
        """Return the indices of `count` evenly spaced images, or of all if there are fewer."""
        return evenly_spaced(range(len(self)), count)

    def word_counts(self) -> Tensor:
        """Return how often each word that can be written occurs, int64 [outputs], EOS first."""
        captions = (caption for of_image in self.captions for caption in of_image)
        words = [token - EOS for caption in captions for token in caption if token != UNK]
        outputs = len(self._vocabulary) - EOS
        return torch.tensor(words, dtype=torch.int64).bincount(minlength=outputs)

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches in an epoch; the last may be smaller."""
        return -(-len(self._draws) // self._size)

    def epoch(self, phase: str, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Yield an epoch's batches from `first_batch` on; the next one is read meanwhile."""
        generator = np.random.default_rng([self._seed, *phase.encode(), epoch])
        order = generator.permutation(self._draws.draw(generator))
        views = generator.integers(len(self._store.row_format.views), size=len(order))
        starts = range(first_batch * self._size, len(order), self._size)
        own_rank, processes = rank(), world_size()

        def read(start: int) -> Callable[[], Batch]:
            all_images = np.stack((order, views))[:, start : start + self._size]
            own = all_images[:, own_rank::processes]
            idle = own.shape[1] == 0
            chosen, of_each = (all_images[:, :1] if idle else own).tolist()
            return self._begin_batch(chosen, of_each, idle)

        for finish in read_ahead(read, starts):
            yield finish()

    def batch(self, indices: Sequence[int], views: Sequence[int] | None = None) -> Batch:
        """Read images with all their captions; see `features` for the arguments."""
        return self._begin_batch(indices, views)()

    def _begin_batch(
        self, indices: Sequence[int], views: Sequence[int] | None, idle: bool = False
    ) -> Callable[[], Batch]:
        """Read a batch as far as a second thread should; return what does the rest."""
        captions = [self.captions[index] for index in indices]
        counts = [len(of_image) for of_image in captions]
        image_ids = torch.tensor([self.images[index].id for index in indices])
        features = self._begin(indices, views)
        tokens_BT = pad([caption for of_image in captions for caption in of_image])
        image_B = torch.from_numpy(np.repeat(np.arange(len(indices)), counts))
        return lambda: Batch(image_ids, features(), tokens_BT, image_B, idle)
