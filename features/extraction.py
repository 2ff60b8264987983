"""The loop that makes features: decoding, resizing, the CNN and writing go on side by side."""

import os
import platform
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from features.backbones import Backbone
from features.images import PictureError, read_picture

_CALIBRATED_ON = 256  # pictures
_MAX_FLOAT16 = float(np.finfo(np.float16).max)

T = TypeVar("T")


def versions() -> dict[str, str]:
    """Return the versions of the libraries on which the last digits of features depend."""
    needed = ("torch", "torchvision", "pillow", "numpy", "h5py", "openvino", "onnxruntime")
    found = {"python": platform.python_version()}
    for name in needed:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


class Writer(Protocol):
    """What takes features; see `features.parts.PartWriter`."""

    def put(self, image_ids: Sequence[int], grid: np.ndarray, pooled: np.ndarray) -> None:
        """Take float32 [n, views, regions, channels] and [n, views, channels]."""

    def fail(self, image_id: int, reason: str) -> None:
        """Take why a picture cannot be read."""


class Seen(NamedTuple):
    """What the CNN saw in one picture."""

    grid: np.ndarray
    """float32 [views, regions, channels]"""
    pooled: np.ndarray
    """float32 [views, channels]"""


def extract(
    backbone: Backbone,
    pictures: Sequence[tuple[int, Path]],
    writer: Writer,
    views: Sequence[str],
    batch_size: int,
    workers: int | None = None,
) -> None:
    """Give the features of every picture, or why it cannot be read, to a writer.

    The writer works in a thread of its own, on one batch while the next is computed. Whatever ends
    the loop, an interrupt or an error anywhere but in the writer, all that was computed is written.

    Args:
        backbone: what turns pictures into features.
        pictures: image ids and their pictures.
        writer: where to write.
        views: names among `features.views.VIEWS`.
        batch_size: how many views go through the network, and to the writer, together; at least
            those of one picture.
        workers: threads that decode, and compute if the backbone takes pictures one by one; by
            default as many as there are cores.

    Raises:
        UserError: the writer's, such as for a full disk.
    """
    size = max(1, batch_size // len(views))
    seen = look(backbone, [path for _, path in pictures], views, size, workers)
    batch: list[tuple[int, Seen | PictureError]] = []
    with (
        ThreadPoolExecutor(1) as thread,
        tqdm(total=len(pictures), unit="image", disable=None) as progress,
        closing(seen),
    ):
        written = thread.submit(_write, writer, [])
        try:
            for (image_id, _), found in zip(pictures, seen, strict=True):
                batch.append((image_id, found))
                if len(batch) == size:
                    written.result()
                    written, batch = thread.submit(_write, writer, batch), []
                progress.update()
        finally:
            written.result()  # if this raises, nothing may be written after it
            _write(writer, batch)


def _write(writer: Writer, batch: Sequence[tuple[int, Seen | PictureError]]) -> None:
    stored = {image_id: found for image_id, found in batch if isinstance(found, Seen)}
    for image_id, found in batch:
        if isinstance(found, PictureError):
            writer.fail(image_id, str(found))
    if stored:
        grids, means = zip(*stored.values(), strict=True)
        writer.put(list(stored), np.stack(grids), np.stack(means))


def calibrate(backbone: Backbone, paths: Sequence[Path], workers: int | None = None) -> np.ndarray:
    """Return the scale of int8 features, float32 [channels]: the largest value of each over 127.

    It is taken from up to 256 pictures, spread evenly over `paths`, of which some may be
    unreadable. A channel that is zero in all of them counts as if it reached 1.
    """
    places = np.linspace(0, len(paths) - 1, min(_CALIBRATED_ON, len(paths))).round().astype(int)
    largest = np.zeros(backbone.description["channels"], np.float32)
    for found in look(backbone, [paths[place] for place in places], ["whole"], 32, workers):
        if isinstance(found, Seen):
            # A value that is no number is not for the scale to report.
            np.fmax(largest, np.abs(found.grid).max((0, 1)), out=largest)
    largest = np.minimum(largest, _MAX_FLOAT16)
    largest[largest == 0] = 1
    return largest / np.float32(127)


def look(
    backbone: Backbone,
    paths: Sequence[Path],
    views: Sequence[str],
    batch_size: int,
    workers: int | None = None,
) -> Generator[Seen | PictureError, None, None]:
    """Yield what the CNN sees in each picture, or why it cannot be read, in the order of `paths`.

    Args:
        backbone: what turns pictures into features.
        paths: the pictures.
        views: names among `features.views.VIEWS`; a picture is decoded once for all of them.
        batch_size: how many pictures go through the network together, unless it takes them one by
            one.
        workers: as in `extract`.
    """
    if backbone.one_by_one:
        return _one_by_one(backbone, paths, views, workers or torch.get_num_threads())
    return _in_batches(backbone, paths, views, batch_size, workers or os.cpu_count() or 1)


def _one_by_one(
    backbone: Backbone, paths: Sequence[Path], views: Sequence[str], workers: int
) -> Generator[Seen | PictureError, None, None]:
    """Let each thread decode a picture and compute its features: no core ever waits for another."""

    def see(path: Path) -> Seen | PictureError:
        try:
            pixels = backbone.views(read_picture(path), views)
        except PictureError as error:
            return error
        grid, pooled = backbone.run(torch.from_numpy(pixels))
        return Seen(grid.numpy(), pooled.numpy())

    with _threads(workers) as pool:
        for seen in _ahead((pool.submit(see, path) for path in paths), 2 * workers):
            yield seen.result()


class _Batch(NamedTuple):
    """Pictures on their way to the network."""

    pixels: Tensor
    """uint8 [batch_size * views, H, W, 3], whose last rows are nothing in the last batch"""
    errors: list[Future[PictureError | None]]
    """of each picture, when it is decoded"""


class _Computing(NamedTuple):
    """Features on their way from the network."""

    errors: list[PictureError | None]
    grid: Tensor
    pooled: Tensor
    done: torch.cuda.Event | None
    """when they have arrived, if they come from a GPU"""


def _in_batches(
    backbone: Backbone, paths: Sequence[Path], views: Sequence[str], batch_size: int, workers: int
) -> Generator[Seen | PictureError, None, None]:
    """Decode batches in threads while the network computes the one before.

    Batches are all of one size, the last one too: the last digits of features, and compiled
    networks, depend on it.
    """
    cuda = backbone.device.type == "cuda"

    def decode(path: Path, into: np.ndarray) -> PictureError | None:
        try:
            into[:] = backbone.views(read_picture(path), views)
        except PictureError as error:
            return error
        return None

    def begin(start: int) -> _Batch:
        shape = (batch_size, len(views), *backbone.size, 3)
        pixels = torch.zeros(shape, dtype=torch.uint8, pin_memory=cuda)
        places = zip(paths[start : start + batch_size], pixels.numpy(), strict=False)
        errors = [pool.submit(decode, path, into) for path, into in places]
        return _Batch(pixels.flatten(0, 1), errors)

    def compute(batch: _Batch) -> _Computing:
        errors = [error.result() for error in batch.errors]
        grid, pooled = (part.to("cpu", non_blocking=True) for part in backbone.run(batch.pixels))
        done = torch.cuda.Event() if cuda else None
        if done:
            done.record()
        return _Computing(errors, grid, pooled, done)

    with _threads(workers) as pool:
        begun = _ahead((begin(start) for start in range(0, len(paths), batch_size)), 2)
        # A GPU has the next batch before the features of this one are fetched from it.
        for errors, grid, pooled, done in _ahead((compute(batch) for batch in begun), int(cuda)):
            if done:
                done.synchronize()
            grids = grid.numpy().reshape(batch_size, len(views), *grid.shape[1:])
            means = pooled.numpy().reshape(batch_size, len(views), -1)
            for error, *features in zip(errors, grids, means, strict=False):
                yield error or Seen(*features)


def _ahead(started: Iterable[T], count: int) -> Iterator[T]:
    """Yield the items of a lazy iterator after `count` more of them have been started."""
    waiting: deque[T] = deque()
    for item in started:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Make a pool of threads that forgets what is still to do when it is left."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
