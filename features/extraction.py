"""The loop that fills a feature store: pictures are decoded while the CNN works."""

import platform
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from features.backbones import Backbone
from features.images import PictureError, read_picture
from features.store import STORED, StoreWriter


def versions() -> dict[str, str]:
    """Return the versions of the libraries on which the last digits of features depend."""
    libraries = ("torch", "torchvision", "pillow", "numpy", "h5py")
    return {"python": platform.python_version(), **{name: version(name) for name in libraries}}


def extract(
    backbone: Backbone, paths: Sequence[Path], store: StoreWriter, batch_size: int, workers: int
) -> int:
    """Store the features of every picture that the store does not have yet.

    Pictures that cannot be read are marked as failed and do not stop the others; those that failed
    in an earlier run are tried again.

    Args:
        backbone: what turns pictures into features.
        paths: the picture of each row of the store.
        store: where to write.
        batch_size: how many pictures go through the network, and to the disk, together.
        workers: threads that decode, at most two batches ahead of the network.

    Returns:
        How many pictures were tried.

    Raises:
        UserError: the store cannot be written; what it has is kept.
    """
    pending = np.flatnonzero(store.status != STORED).tolist()
    decoded = _decode_ahead(backbone, [paths[row] for row in pending], workers, 2 * batch_size)
    with tqdm(total=len(pending), unit="image", disable=None) as progress:
        readable = _readable(zip(pending, decoded, strict=True), store, progress)
        while batch := list(islice(readable, batch_size)):
            grid, pooled = backbone.features(torch.stack([picture for _, picture in batch]))
            store.put([row for row, _ in batch], grid.cpu().numpy(), pooled.cpu().numpy())
            progress.update(len(batch))
    return len(pending)


def _readable(
    decoded: Iterator[tuple[int, Tensor | PictureError]], store: StoreWriter, progress: tqdm
) -> Iterator[tuple[int, Tensor]]:
    """Mark the pictures that cannot be read as failed and yield the others."""
    for row, picture in decoded:
        if isinstance(picture, PictureError):
            store.fail(row, str(picture))
            progress.update()
        else:
            yield row, picture


def _decode_ahead(
    backbone: Backbone, paths: Sequence[Path], workers: int, ahead: int
) -> Iterator[Tensor | PictureError]:
    """Decode `paths` in threads and yield the results in order, at most `ahead` waiting."""

    def decode(path: Path) -> Tensor | PictureError:
        try:
            return backbone.transform(read_picture(path))
        except PictureError as error:
            return error

    waiting: deque[Future[Tensor | PictureError]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for path in paths:
            waiting.append(pool.submit(decode, path))
            if len(waiting) == ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
