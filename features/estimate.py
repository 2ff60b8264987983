"""Estimating the time and size of an extraction from some of its pictures."""

import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from features.backbones import Backbone
from features.errors import UserError
from features.extraction import Extracted, Source, calibrate, extract_features
from features.row_format import RowFormat
from features.sampling import evenly_spaced
from features.store import as_size

_BATCHES = 8  # the number of batches to measure,
_SECONDS = 15.0  # or fewer, after this time


def estimate(
    backbone: Backbone,
    pictures: Sequence[Source],
    row_format: RowFormat,
    folder: Path,
    batch_size: int,
    workers: int | None,
    read: Callable[[Source], Image.Image] | None = None,
) -> str:
    """Extract evenly spaced `pictures` without writing them, and return a table of figures.

    Args:
        backbone: computes the features.
        pictures: all pictures to extract.
        row_format: the format of the rows.
        folder: where the store will be.
        batch_size: as in `features.extraction.extract_features`.
        workers: as there.
        read: as there.

    Raises:
        UserError: none of the pictures tried can be read.
    """
    tried = evenly_spaced(pictures, (_BATCHES + 1) * batch_size)
    if row_format.dtype.kind == "i" and row_format.scale is None:
        row_format = replace(
            row_format, scale=calibrate(backbone, tried[:batch_size], workers, read)
        )
    rest = tried[batch_size:] or tried
    options = row_format.views, batch_size, workers, read
    for _ in extract_features(backbone, tried[:batch_size], *options):
        pass  # warm-up: start threads, allocate memory
    sizes, measured = [], 0
    start = time.perf_counter()
    with closing(extract_features(backbone, rest, *options)) as results:
        for result in results:
            measured += 1
            if isinstance(result, Extracted):
                sizes.append(_bytes(result, row_format))
            if time.perf_counter() - start > _SECONDS:
                break
    seconds = (time.perf_counter() - start) / measured
    if not sizes:
        raise UserError(f"none of {measured} pictures can be read, for example {rest[0]}")

    each, free = sum(sizes) / len(sizes), shutil.disk_usage(folder).free
    size = round(each * len(pictures))
    rows = [
        ("in all", f"{duration(seconds * len(pictures))}, {1 / seconds:.1f} pictures/s"),
        ("memory", f"{as_size(peak_memory())} at the peak"),
        (
            "disk",
            f"{as_size(size)}, {each / 1000:.1f} kB a picture, and as much again until the end; "
            f"{as_size(free)} are free{'' if 2 * size < free else ': TOO LITTLE'}",
        ),
    ]
    if measured > len(sizes):
        rows.append(("unreadable", f"{measured - len(sizes)} of {measured} pictures tried"))
    return "\n".join(
        [
            f"extract --dry-run: {len(pictures):,} pictures with {backbone.description['backbone']}"
            f" by {backbone.backend} on {backbone.device}, {torch.get_num_threads()} threads",
            *(f"  {name:12}{figures}" for name, figures in rows),
            f"measured on {measured} pictures; nothing was written",
        ]
    )


def _bytes(extracted: Extracted, row_format: RowFormat) -> int:
    """Return the number of bytes that the features of a picture take in the store."""
    chunks = (row_format.pack(grid) for grid in row_format.quantise(extracted.grid))
    return sum(map(len, chunks)) + 2 * extracted.pooled.size


def peak_memory() -> int:
    """Return the peak memory of this process in bytes, including its GPU's."""
    unit = 1 if sys.platform == "darwin" else 1024
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit + gpu


def duration(seconds: float) -> str:
    """Format a time as hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {rest} s"
