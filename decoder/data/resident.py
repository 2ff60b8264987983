"""Features in memory: a store is inflated once, and batches are gathered from it.

Inflating the features of a batch takes longer than a GPU needs to learn from them. So they are
inflated once, by all cores, into the memory of the GPU or, where they are too large for it, of this
machine. They stay there in the stored type. Every row is checked against its checksum as usual.

Shape suffixes: N images, P their views (those of an image are neighbours), I images of a batch, R
regions, C channels.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from decoder.data.batches import Features
from features.devices import cores, free_memory
from features.extraction import ahead, threads
from features.progress import Progress
from features.store_set import Store

# Features may take this share of the memory that is free; the rest is for the training.
SHARE = 0.6
_BLOCK = 32  # views that one task inflates
_SERIAL = 2**14  # values; torch converts this many without starting a team of threads
_CPU = torch.device("cpu")


class NotExact(Exception):
    """Features that the stored type cannot hold exactly."""


class ResidentFeatures:
    """Features of images in memory, as a store has them.

    Args:
        store: the features.
        rows: int64 [N], the rows of the images.
        views: number of views to keep of each image, from the first on.
        grid: keep the grid too, not the pooled features alone.
        memory: where they are kept, the CPU or a GPU.
        device: where batches go; it is `memory` unless that is the CPU.

    Raises:
        AccessError: the store cannot be read now.
        MemoryError: they do not fit.
        NotExact: the stores of a set have different scales, so one cannot hold all features.
        UserError: a row is damaged.
    """

    def __init__(
        self,
        store: Store,
        rows: np.ndarray,
        views: int,
        grid: bool,
        memory: torch.device,
        device: torch.device,
    ) -> None:
        kind = store.row_format
        self._views = views
        self._device = device
        grid_type = torch.int8 if kind.dtype.kind == "i" else torch.float16
        shape = len(rows) * views, kind.regions if grid else 0, kind.channels
        try:
            self._grid_PRC = torch.empty(shape, dtype=grid_type, device=memory)
            self._pooled_PC = torch.empty(shape[0], shape[2], dtype=torch.float16, device=memory)
        except RuntimeError as error:  # torch's own error of a full memory is one of these
            raise MemoryError(str(error)) from error
        self._scale_C = None if kind.scale is None else torch.from_numpy(kind.scale).to(device)
        self._counts: np.ndarray | None = None
        if grid and store.regions is not None:
            self._counts = np.repeat(store.regions[rows], views)
            self._count_P = torch.from_numpy(self._counts).to(device)
        self._inflate(store, rows)

    def _inflate(self, store: Store, rows: np.ndarray) -> None:
        """Read all rows in threads, each a block of views at a time."""
        every_row, every_view = np.repeat(rows, self._views), np.arange(self._views)
        every_view = np.tile(every_view, len(rows))
        cuda = self._grid_PRC.device.type == "cuda"

        def read(start: int) -> tuple[int, Tensor, Tensor]:
            block = slice(start, start + _BLOCK)
            grid, pooled = self._grid_PRC[block], self._pooled_PC[block]
            if cuda:
                grid = torch.empty(grid.shape, dtype=grid.dtype, pin_memory=True)
                pooled = torch.empty(pooled.shape, dtype=pooled.dtype, pin_memory=True)
            of_block = every_row[block], every_view[block]
            _convert(store.pooled(*of_block), pooled, None)
            if grid.numel():
                _convert(store.grid(*of_block), grid, store.row_format.scale)
            return start, grid, pooled

        starts = range(0, len(every_row), _BLOCK)
        workers = cores()
        with (
            threads(workers) as pool,
            Progress("read features", len(every_row), "view") as progress,
        ):
            # Few blocks wait to be copied, so that they take little memory.
            for done in ahead((pool.submit(read, start) for start in starts), 2 * workers):
                start, *parts = done.result()
                if cuda:
                    for to, part in zip((self._grid_PRC, self._pooled_PC), parts, strict=True):
                        to[start : start + _BLOCK].copy_(part, non_blocking=True)
                progress.update(len(parts[1]))

    def places(self, indices: Sequence[int], views: Sequence[int] | None = None) -> np.ndarray:
        """Return where images are in P, int64 [I].

        Args:
            indices: of the images.
            views: the view of each; by default the first.
        """
        return np.asarray(indices) * self._views + (0 if views is None else np.asarray(views))

    def gather(self, place_I: Tensor) -> Features:
        """Return the features at places, float32, on the device where all of this is.

        Nothing waits for the host, and the shapes depend on I alone: where the number of regions
        varies, the grid has as many as an image can have.
        """
        count_I = None if self._counts is None else self._count_P[place_I]
        grid_IRC = self._grid_PRC.index_select(0, place_I)
        return self._features(grid_IRC, self._pooled_PC.index_select(0, place_I), count_I)

    def begin(
        self, indices: Sequence[int], views: Sequence[int] | None = None
    ) -> Callable[[], Features]:
        """Read a batch as far as a second thread should, and return what reads the rest of it.

        The first part uses numpy alone (see `decoder.data.readers`), and only the rest uses a GPU.
        Where the number of regions varies, the grid has as many as the largest of these images.
        For the arguments see `places`.
        """
        places = self.places(indices, views)
        most = None if self._counts is None else int(self._counts[places].max())
        if self._grid_PRC.device.type != "cpu":

            def gather() -> Features:
                features = self.gather(torch.from_numpy(places).to(self._device, non_blocking=True))
                if most is None or features.mask_IR is None:
                    return features
                grid_IRC, mask_IR = features.grid_IRC[:, :most], features.mask_IR[:, :most]
                return Features(grid_IRC, features.pooled_IC, mask_IR)

            return gather
        grid_IRC = self._taken(self._grid_PRC[:, :most], places)
        pooled_IC = self._taken(self._pooled_PC, places)

        def copy() -> Features:
            on_device = grid_IRC.to(self._device, non_blocking=True)
            count_I = None
            if self._counts is not None:
                count_I = torch.from_numpy(self._counts[places]).to(self._device, non_blocking=True)
            return self._features(on_device, pooled_IC.to(self._device, non_blocking=True), count_I)

        return copy

    def _taken(self, values: Tensor, places: np.ndarray) -> Tensor:
        """Copy rows of `values` to memory from which a GPU can fetch them meanwhile."""
        shape, pinned = (len(places), *values.shape[1:]), self._device.type == "cuda"
        taken = torch.empty(shape, dtype=values.dtype, pin_memory=pinned)
        np.take(values.numpy(), places, axis=0, out=taken.numpy(), mode="clip")
        return taken

    def _features(self, grid_IRC: Tensor, pooled_IC: Tensor, count_I: Tensor | None) -> Features:
        mask_IR = None
        if count_I is not None:
            mask_IR = torch.arange(grid_IRC.shape[1], device=count_I.device) < count_I[:, None]
        grid_IRC = grid_IRC.float()
        if self._scale_C is not None:
            grid_IRC *= self._scale_C
        return Features(grid_IRC, pooled_IC.float(), mask_IR)


def _convert(values: np.ndarray, into: Tensor, scale: np.ndarray | None) -> None:
    """Write float32 features that were read from a store to `into`, in the stored type.

    Raises:
        NotExact: the store multiplied them by another scale.
    """
    if scale is not None:
        stored = np.rint(values / scale).astype(np.int8)
        if not np.array_equal(stored * scale, values):
            raise NotExact("the stores of the set have different scales")
        into.numpy()[:] = stored
        return
    flat_in, flat_out = torch.from_numpy(values).flatten(), into.flatten()
    for some, to in zip(flat_in.split(_SERIAL), flat_out.split(_SERIAL), strict=True):
        to.copy_(some)


def bytes_of(store: Store, images: int, views: int, grid: bool) -> int:
    """Return how many bytes `ResidentFeatures` take."""
    kind = store.row_format
    return images * views * (grid * kind.grid_bytes + 2 * kind.channels)


def choose_memory(needed: int, device: torch.device) -> torch.device | None:
    """Return where `needed` bytes of features for a GPU should be kept; None if nowhere."""
    for memory in (device, _CPU):
        if needed <= SHARE * free_memory(memory):
            return memory
    return None
