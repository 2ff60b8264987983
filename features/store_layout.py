"""The data sets of a store: their shapes and types, and where they lie in the file."""

import math
from typing import Any

import h5py
import numpy as np

from features.row_format import RowFormat

REASON_BYTES = 200


def layout(count: int, row_format: RowFormat) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Return the shape and type of each data set of a store of `count` images."""
    views = len(row_format.views)
    each = (count,) if views == 1 else (count, views)
    regions, channels = row_format.regions, row_format.channels
    sets: dict[str, tuple[tuple[int, ...], np.dtype]] = {
        "image_id": ((count,), np.dtype("<i8")),
        "status": ((count,), np.dtype("u1")),
        "failure": ((count,), np.dtype(f"S{REASON_BYTES}")),
        "pooled": ((*each, channels), np.dtype("<f2")),
        "grid": ((*each, regions, channels), row_format.dtype),
        "checksum": ((*each, 2), np.dtype("<u4")),
    }
    if row_format.dtype.kind == "i":
        sets["scale"] = ((channels,), np.dtype("<f4"))
    if row_format.varies:
        sets["regions"] = ((count,), np.dtype("<u4"))
    return sets


def start_of(dataset: h5py.Dataset, file_size: int) -> int:
    """Return the offset of a contiguous data set in the file."""
    start = dataset.id.get_offset()
    bytes_ = math.prod(dataset.shape) * dataset.dtype.itemsize
    if start is None or start + bytes_ > file_size:
        raise ValueError(f"{dataset.name} is not contiguous, or ends beyond the file")
    return start


def chunk_index(
    grid: h5py.Dataset, row_format: RowFormat, stored: np.ndarray, file_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the offset, int64 [N, views], and the size, uint32 [N, views], of each chunk.

    Args:
        grid: the data set.
        row_format: the format of the rows.
        stored: bool [N], which rows have a grid.
        file_size: size of the file in bytes.

    Raises:
        ValueError: the grid is divided or compressed in another way than `row_format` says, or a
            chunk of a stored row cannot be one.
    """
    filters = grid.id.get_create_plist().get_nfilters(), grid.compression
    if grid.chunks != (*(1,) * (grid.ndim - 2), *grid.shape[-2:]):
        raise ValueError(f"/grid has chunks of {grid.chunks}")
    if filters != {"deflate": (1, "gzip"), "none": (0, None)}[row_format.compression]:
        raise ValueError(f"the filters of /grid are not {row_format.compression}")
    offsets = np.zeros((len(grid), len(row_format.views)), np.int64)
    sizes = np.zeros(offsets.shape, np.uint32)

    def note(chunk: Any) -> None:
        place = (*chunk.chunk_offset[:-2], 0)[:2]
        offsets[place] = chunk.byte_offset
        sizes[place] = chunk.size

    grid.id.chunk_iter(note)
    least, most = row_format.packed_bytes
    taken, ends = sizes[stored], offsets[stored] + sizes[stored]
    if ((taken < max(least, 1)) | (taken > most) | (ends > file_size)).any():
        raise ValueError("a chunk of /grid is missing, has a wrong size, or ends beyond the file")
    return offsets, sizes
