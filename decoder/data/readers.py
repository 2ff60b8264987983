"""Readers of the feature store: a split's images in order, and shuffled training batches."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from decoder.data.batches import Batch, Features
from decoder.data.resident import (
    NotExact,
    ResidentFeatures,
    bytes_of,
    choose_memory,
)
from features.commands import EXTRACT, PREPARE
from features.errors import UserError, first_few
from features.sampling import evenly_spaced
from features.store import as_size
from features.store_set import Store
from pipeline.caption_database import SplitImages
from pipeline.captions import CaptionTable, Image
from pipeline.vocabulary import Vocabulary

# Images of shards on which an embedding or a regression is fitted, at most.
MOST_SAMPLED = 100_000

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def read_features(
    store: Store,
    rows: np.ndarray,
    views: Sequence[int] | None = None,
    grid: bool = True,
    every_region: bool = False,
) -> Features:
    """Read the features of rows of a store.

    Args:
        store: the features.
        rows: int64 [I].
        views: the view of each row; by default the first.
        grid: read the grid too; else it is empty, [I, 0, C].
        every_region: where the number of regions varies, return as many as an image can have; by
            default as many as the largest of these images.
    """
    pooled = torch.from_numpy(store.pooled(rows, views))
    if not grid:
        return Features(torch.empty(len(rows), 0, pooled.shape[1]), pooled)
    if store.regions is None:
        return Features(torch.from_numpy(store.grid(rows, views)), pooled)
    counts = store.regions[rows]
    most = store.row_format.regions if every_region else int(counts.max())
    mask = torch.from_numpy(np.arange(most) < counts[:, None])
    return Features(torch.from_numpy(store.grid(rows, views, most)), pooled, mask)


class SplitReader:
    """Reads the features of one split's images.

    Images whose extraction failed are left out: `left_out` is their number, `images` the others.

    Args:
        store: the features.
        table: the images and captions.
        split: of the table.
        grid: read the grid too, not the pooled features alone.

    Raises:
        UserError: the split is empty, or some of its images are not in the store yet.
    """

    def __init__(self, store: Store, table: CaptionTable, split: str, grid: bool = True) -> None:
        self.split = split
        self._reads_grid = grid
        images = table.split(split)
        self.images: Sequence[Image]
        if isinstance(images, SplitImages):  # failed images are not among them
            self.images, self.left_out = images, images.left_out
        else:
            failed = store.failures()
            self.images = [image for image in images if image.id not in failed]
            self.left_out = len(images) - len(self.images)
        if not self.images:
            raise UserError(
                f"the features of all {len(images)} {split} images could not be extracted; "
                f"{EXTRACT} reports why"
            )
        self._store = store
        self._rows = (
            images.rows
            if isinstance(images, SplitImages)
            else store.rows([image.id for image in self.images])
        )
        self.resident: ResidentFeatures | None = None
        """The features in memory, from which batches then come."""

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, most: int) -> Sequence[int]:
        """Return the indices of all images, or of `most` evenly spaced ones of shards."""
        every = range(len(self))
        return evenly_spaced(every, most) if isinstance(self.images, SplitImages) else every

    def sampled(self, most: int) -> Sequence[Image]:
        """Return the images that `sample` chooses."""
        if isinstance(self.images, SplitImages):
            return self.images.at(self.sample(most))
        return self.images

    def features(self, indices: Sequence[int], views: Sequence[int] | None = None) -> Features:
        """Read the features of some images.

        Args:
            indices: indices of `images`.
            views: the view of each of these images; by default the first.

        Returns:
            The features; the grid is empty, [I, 0, C], if this reader does not read it.
        """
        return read_features(
            self._store, self._rows[np.asarray(indices)], views, grid=self._reads_grid
        )

    @property
    def views_of_batches(self) -> int:
        """Number of views of an image of which `batches` and the like need memory."""
        return 1

    def resident_bytes(self) -> int:
        """Return how many bytes the features take in memory."""
        return bytes_of(self._store, len(self), self.views_of_batches, self._reads_grid)

    def keep(self, memory: torch.device, device: torch.device) -> None:
        """Keep the features in memory; see `ResidentFeatures` for the arguments and errors."""
        views = self.views_of_batches
        self.resident = ResidentFeatures(
            self._store, np.asarray(self._rows), views, self._reads_grid, memory, device
        )

    def _begin(
        self, indices: Sequence[int], views: Sequence[int] | None = None
    ) -> Callable[[], Features]:
        """Read features of a batch as far as a second thread should; return what does the rest."""
        if self.resident is not None:
            return self.resident.begin(indices, views)
        features = self.features(indices, views)
        return lambda: features

    def pooled(self, indices: Sequence[int]) -> Tensor:
        """Read only the pooled features of the first view, float32 [I, C]."""
        return torch.from_numpy(self._store.pooled(self._rows[np.asarray(indices)])).float()

    def batches(
        self, size: int, views: int = 1, first: int = 0, step: int = 1
    ) -> Iterator[tuple[list[Image], Features]]:
        """Yield all images in order with their features, and read the next batch meanwhile.

        Args:
            size: images in a batch.
            views: number of views to read of each image; they are neighbours in the features.
            first: the batch to start with.
            step: 2 for every second batch; those between are not read.
        """
        starts = range(first * size, len(self), step * size)
        indices = [range(start, min(start + size, len(self))) for start in starts]

        def read(chosen: range) -> Callable[[], Features]:
            every_view = np.tile(np.arange(views), len(chosen))
            return self._begin(np.repeat(chosen, views).tolist(), every_view.tolist())

        for chosen, features in zip(indices, read_ahead(read, indices), strict=True):
            yield [self.images[i] for i in chosen], features()


def expect_captions(reader: SplitReader) -> None:
    """Raise UserError if an image of the split has no caption."""
    without_captions = [image.id for image in reader.images if not image.captions]
    if without_captions:
        raise UserError(
            f"{len(without_captions)} {reader.split} images have no caption: "
            f"{first_few(without_captions)}; {PREPARE} leaves such images out"
        )


class TrainingReader(SplitReader, ABC):
    """Shuffled training batches, with one stored view of each image drawn at random.

    Batch n of epoch e depends only on the seed, the phase, e, n and the number of processes. Under
    torchrun each process reads a share of every batch.

    Args:
        store: the features.
        table: the images and captions.
        vocabulary: encodes the captions.
        size: images in a batch.
        seed: of the order of the images and of their views.
        grid: read the grid too, not the pooled features alone.

    Raises:
        UserError: as `SplitReader`.
    """

    def __init__(
        self,
        store: Store,
        table: CaptionTable,
        vocabulary: Vocabulary,
        size: int,
        seed: int,
        grid: bool = True,
    ) -> None:
        super().__init__(store, table, "train", grid)
        self._vocabulary = vocabulary
        self._size = size
        self._seed = seed

    @property
    def views_of_batches(self) -> int:
        """Number of views of an image of which batches need memory: all, one is drawn of them."""
        return len(self._store.row_format.views)

    @property
    @abstractmethod
    def batches_per_epoch(self) -> int:
        """Number of batches in an epoch; the last may be smaller."""

    @abstractmethod
    def epoch(self, phase: str, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Yield this process's share of an epoch's batches, from `first_batch` on.

        The next one is read meanwhile.
        """

    @abstractmethod
    def batch(self, indices: Sequence[int], views: Sequence[int] | None = None) -> Batch:
        """Read images with all their captions; see `features` for the arguments."""

    @abstractmethod
    def captions_of(self, indices: Sequence[int]) -> list[list[list[int]]]:
        """Return the token ids of the captions of some images."""

    @abstractmethod
    def examples(self) -> list[list[list[int]]]:
        """Return the captions of all images, or of shards those of some, for checks."""

    @abstractmethod
    def spread(self, count: int) -> list[int]:
        """Return the indices of `count` evenly spaced images, or of all if there are fewer."""

    @abstractmethod
    def word_counts(self) -> Tensor:
        """Return how often each word that can be written occurs, int64 [V], EOS first."""


def keep_in_memory(readers: Sequence[SplitReader], device: torch.device) -> str:
    """Keep the features of splits in the memory of a GPU, or of this machine, if they fit there.

    Returns:
        What was done, for people. For other devices than a GPU and for shards it is empty, and
        features are read when they are needed: a second thread inflates them as fast as a CPU
        learns.

    Raises:
        AccessError: the store cannot be read now.
        UserError: a row is damaged.
    """
    sharded = any(isinstance(reader.images, SplitImages) for reader in readers)
    if device.type != "cuda" or sharded:  # the images of shards may be any number
        return ""
    needed = sum(reader.resident_bytes() for reader in readers)
    size, images = as_size(needed), f"features of {sum(map(len, readers)):,} images"
    memory, why = choose_memory(needed, device), "more than is free"
    try:
        if memory is not None:
            for reader in readers:
                reader.keep(memory, device)
            where = "of the GPU" if memory == device else "of this machine"
            return f"{images} are in the memory {where} ({size})"
    except (MemoryError, NotExact) as error:
        why = str(error)
    for reader in readers:
        reader.resident = None
    return f"{images} are read from the disk in each epoch ({size}: {why})"


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield each batch on `device`; the next one is read meanwhile."""
    if device.type == "cpu":
        yield from batches
        return
    before: Batch | None = None
    for batch in batches:
        if batch.features.pooled_IC.device.type == "cpu":
            features = batch.features.each(Tensor.pin_memory)
            batch = batch._replace(features=features).to(device)
        if before is not None:
            yield before
        before = batch
    if before is not None:
        yield before


def read_ahead(
    read: Callable[[Argument], Result], arguments: Iterable[Argument]
) -> Iterator[Result]:
    """Yield `read(argument)` for each argument; a thread reads the next one meanwhile.

    `read` should compute with numpy, not torch. An operation of torch in this thread would start a
    second team of OpenMP threads, and with more threads than cores OpenMP puts threads to sleep at
    every barrier, which costs a quarter of the training speed on two cores.
    """
    with ThreadPoolExecutor(1) as reader:
        pending: Future[Result] | None = None
        for argument in arguments:
            following = reader.submit(read, argument)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()
