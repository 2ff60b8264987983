"""Extraction: decoding, resizing, the CNN and writing run at the same time."""

import os
import platform
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from features.backbones import Backbone
from features.images import PictureError, read_picture
from features.progress import Progress
from features.row_format import scale_for

_CALIBRATION_PICTURES = 256

T = TypeVar("T")
Source = TypeVar("Source")
"""Where a picture comes from: a path, unless a function that decodes something else is given."""


def versions() -> dict[str, str]:
    """Return the versions of the libraries on which the last digits of features depend."""
    names = ("torch", "torchvision", "pillow", "numpy", "h5py", "openvino", "onnxruntime")
    installed = {"python": platform.python_version()}
    for name in names:
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed


def spread(items: Sequence[T], count: int) -> list[T]:
    """Return `count` evenly spaced `items`, or all if there are fewer."""
    indices = np.linspace(0, len(items) - 1, min(count, len(items)))
    return [items[index] for index in indices.round().astype(int)]


class Writer(Protocol):
    """A destination of features, such as `features.parts.PartWriter`."""

    def put(self, image_ids: Sequence[int], grid: np.ndarray, pooled: np.ndarray) -> None:
        """Store float32 [n, views, regions, channels] and [n, views, channels]."""

    def fail(self, image_id: int, reason: str) -> None:
        """Record why a picture cannot be read."""


class Extracted(NamedTuple):
    """The features of one picture."""

    grid: np.ndarray
    """float32 [views, regions, channels]"""
    pooled: np.ndarray
    """float32 [views, channels]"""


def extract(
    backbone: Backbone,
    pictures: Sequence[tuple[int, Source]],
    writer: Writer,
    views: Sequence[str],
    batch_size: int,
    workers: int | None = None,
    read: Callable[[Source], Image.Image] | None = None,
    hidden: bool = False,
) -> None:
    """Write the features of every picture, or the reason why it cannot be read, to a writer.

    The writer runs in a thread of its own and writes one batch while the next is computed. If an
    interrupt or an error outside the writer ends the loop, all that was computed is still written.

    Args:
        backbone: computes the features.
        pictures: image ids and the paths of their pictures, or whatever `read` takes.
        writer: where to write.
        views: names of views, from `features.views.VIEWS`.
        batch_size: number of views that go through the network, and to the writer, together; at
            least those of one picture.
        workers: number of threads that decode, and also compute if the backbone takes pictures one
            by one; by default the number of cores.
        read: as in `extract_features`.
        hidden: show no progress.

    Raises:
        UserError: from the writer, for example if the disk is full.
    """
    size = max(1, batch_size // len(views))
    sources = [source for _, source in pictures]
    results = extract_features(backbone, sources, views, size, workers, read)
    batch: list[tuple[int, Extracted | PictureError]] = []
    with (
        ThreadPoolExecutor(1) as thread,
        Progress("extract", len(pictures), "image", hidden=hidden) as progress,
        closing(results),
    ):
        written = thread.submit(_write, writer, [])
        try:
            for (image_id, _), result in zip(pictures, results, strict=True):
                batch.append((image_id, result))
                if len(batch) == size:
                    written.result()
                    written, batch = thread.submit(_write, writer, batch), []
                progress.update()
        finally:
            written.result()  # if this raises, nothing more may be written
            _write(writer, batch)


def _write(writer: Writer, batch: Sequence[tuple[int, Extracted | PictureError]]) -> None:
    extracted = {image_id: result for image_id, result in batch if isinstance(result, Extracted)}
    for image_id, result in batch:
        if isinstance(result, PictureError):
            writer.fail(image_id, str(result))
    if extracted:
        grids, means = zip(*extracted.values(), strict=True)
        writer.put(list(extracted), np.stack(grids), np.stack(means))


def calibrate(
    backbone: Backbone,
    pictures: Sequence[Source],
    workers: int | None = None,
    read: Callable[[Source], Image.Image] | None = None,
) -> np.ndarray:
    """Return the scale of int8 features, float32 [channels]: the channel's largest value / 127.

    Up to 256 pictures are used, evenly spaced in `pictures`; unreadable ones are ignored. A channel
    that is zero in all of them is scaled as if its largest value were 1.
    """
    sample = spread(pictures, _CALIBRATION_PICTURES)
    largest = np.zeros(backbone.description["channels"], np.float32)
    for result in extract_features(backbone, sample, ["whole"], 32, workers, read):
        if isinstance(result, Extracted):
            # fmax ignores NaN, which the writer reports.
            np.fmax(largest, np.abs(result.grid).max((0, 1)), out=largest)
    return scale_for(largest)


def extract_features(
    backbone: Backbone,
    pictures: Sequence[Source],
    views: Sequence[str],
    batch_size: int,
    workers: int | None = None,
    read: Callable[[Source], Image.Image] | None = None,
) -> Generator[Extracted | PictureError, None, None]:
    """Yield the features of each picture, or why it cannot be read, in their order.

    Args:
        backbone: computes the features.
        pictures: their paths, or whatever `read` takes.
        views: names of views, from `features.views.VIEWS`; a picture is decoded once for all.
        batch_size: number of pictures that go through the network together, unless the backbone
            takes them one by one.
        workers: as in `extract`.
        read: decodes a picture, or raises PictureError; by default `read_picture`.
    """
    decode: Callable[[Any], Image.Image] = read or read_picture
    if backbone.one_by_one:
        return _one_by_one(backbone, pictures, views, workers or torch.get_num_threads(), decode)
    threads = workers or os.cpu_count() or 1
    return _in_batches(backbone, pictures, views, batch_size, threads, decode)


def _one_by_one(
    backbone: Backbone,
    pictures: Sequence[Source],
    views: Sequence[str],
    workers: int,
    read: Callable[[Source], Image.Image],
) -> Generator[Extracted | PictureError, None, None]:
    """Decode each picture and compute its features in one thread, so no core waits for another."""

    def compute(picture: Source) -> Extracted | PictureError:
        try:
            pixels = backbone.views(read(picture), views)
        except PictureError as error:
            return error
        grid, pooled = backbone.run(torch.from_numpy(pixels))
        return Extracted(grid.numpy(), pooled.numpy())

    with threads(workers) as pool:
        for result in ahead((pool.submit(compute, picture) for picture in pictures), 2 * workers):
            yield result.result()


class _Batch(NamedTuple):
    """Pictures on their way to the network."""

    pixels: Tensor
    """uint8 [batch_size * views, H, W, 3]; the last batch may be padded with zeros."""
    errors: list[Future[PictureError | None]]
    """For each picture, why it cannot be read; done when it is decoded."""


class _Computing(NamedTuple):
    """Features on their way from the network."""

    errors: list[PictureError | None]
    grid: Tensor
    pooled: Tensor
    done: torch.cuda.Event | None
    """On a GPU, the event that the features have been copied."""


def _in_batches(
    backbone: Backbone,
    pictures: Sequence[Source],
    views: Sequence[str],
    batch_size: int,
    workers: int,
    read: Callable[[Source], Image.Image],
) -> Generator[Extracted | PictureError, None, None]:
    """Decode batches in threads while the network computes the previous one.

    All batches have the same size, including the last: the last digits of features and compiled
    networks depend on it.
    """
    cuda = backbone.device.type == "cuda"

    def decode(picture: Source, into: np.ndarray) -> PictureError | None:
        try:
            into[:] = backbone.views(read(picture), views)
        except PictureError as error:
            return error
        return None

    def begin(start: int) -> _Batch:
        shape = (batch_size, len(views), *backbone.size, 3)
        pixels = torch.zeros(shape, dtype=torch.uint8, pin_memory=cuda)
        places = zip(pictures[start : start + batch_size], pixels.numpy(), strict=False)
        errors = [pool.submit(decode, picture, into) for picture, into in places]
        return _Batch(pixels.flatten(0, 1), errors)

    def compute(batch: _Batch) -> _Computing:
        errors = [error.result() for error in batch.errors]
        grid, pooled = (part.to("cpu", non_blocking=True) for part in backbone.run(batch.pixels))
        done = torch.cuda.Event() if cuda else None
        if done:
            done.record()
        return _Computing(errors, grid, pooled, done)

    with threads(workers) as pool:
        begun = ahead((begin(start) for start in range(0, len(pictures), batch_size)), 2)
        # A GPU receives the next batch before the features of this one are copied back.
        for errors, grid, pooled, done in ahead((compute(batch) for batch in begun), int(cuda)):
            if done:
                done.synchronize()
            grids = grid.numpy().reshape(batch_size, len(views), *grid.shape[1:])
            means = pooled.numpy().reshape(batch_size, len(views), -1)
            for error, *features in zip(errors, grids, means, strict=False):
                yield error or Extracted(*features)


def ahead(started: Iterable[T], count: int) -> Iterator[T]:
    """Yield the items of a lazy iterator, and keep the next `count` of them started meanwhile."""
    waiting: deque[T] = deque()
    for item in started:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting


@contextmanager
def threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Make a thread pool whose pending tasks are cancelled when the block ends."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
