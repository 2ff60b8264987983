"""How long and how large an extraction will be, measured by some of its pictures."""

import resource
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from features.backbones import Backbone
from features.errors import UserError
from features.extraction import Seen, calibrate, look
from features.row_format import RowFormat
from features.store import as_size
from features.verification import spread

_BATCHES = 8  # measured, and fewer where they take longer than
_SECONDS = 15.0


def estimate(
    backbone: Backbone,
    pictures: Sequence[Path],
    row_format: RowFormat,
    folder: Path,
    batch_size: int,
    workers: int | None,
) -> str:
    """Extract some of `pictures`, spread over all, and return a table of figures; writes nothing.

    Args:
        backbone: what turns pictures into features.
        pictures: all that are to be extracted.
        row_format: how rows are written.
        folder: where the store will be.
        batch_size: as in `features.extraction.extract`.
        workers: as there.

    Raises:
        UserError: none of the pictures tried can be read.
    """
    places = spread(range(len(pictures)), (_BATCHES + 1) * batch_size)
    tried = [pictures[place] for place in places]
    if row_format.dtype.kind == "i" and row_format.scale is None:
        row_format = replace(row_format, scale=calibrate(backbone, tried[:batch_size], workers))
    rest = tried[batch_size:] or tried
    for _ in look(backbone, tried[:batch_size], row_format.views, batch_size, workers):
        pass  # the first ones start threads and allocate memory
    sizes, measured = [], 0
    start = time.perf_counter()
    with closing(look(backbone, rest, row_format.views, batch_size, workers)) as found:
        for seen in found:
            measured += 1
            if isinstance(seen, Seen):
                sizes.append(_bytes(seen, row_format))
            if time.perf_counter() - start > _SECONDS:
                break
    seconds = (time.perf_counter() - start) / measured
    if not sizes:
        raise UserError(f"none of {measured} pictures can be read, {rest[0]} among them")

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


def _bytes(seen: Seen, row_format: RowFormat) -> int:
    chunks = (row_format.pack(grid) for grid in row_format.quantise(seen.grid))
    return sum(map(len, chunks)) + 2 * seen.pooled.size


def peak_memory() -> int:
    """Return the most bytes that this process, and its GPU, ever held."""
    unit = 1 if sys.platform == "darwin" else 1024
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit + gpu


def duration(seconds: float) -> str:
    """Return a time as people read it."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {rest} s"
