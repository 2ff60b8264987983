"""Extraction: decoding, resizing, the CNN and writing run at the same time."""

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
from features.decoding import Buffer, DecodingProcesses, DecodingThreads
from features.devices import cores
from features.images import PictureError, read_picture
from features.progress import Progress
from features.row_format import scale_for
from features.sampling import evenly_spaced

_CALIBRATION_PICTURES = 256
# From this number of pictures on, starting processes that decode them pays.
_MANY = 500

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
    processes: bool | None = None,
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
        processes: see `extract_features`.

    Raises:
        UserError: from the writer, for example if the disk is full.
    """
    size = pictures_at_once(batch_size, len(views))
    sources = [source for _, source in pictures]
    results = extract_features(backbone, sources, views, size, workers, read, processes)
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
    sample = evenly_spaced(pictures, _CALIBRATION_PICTURES)
    largest = np.zeros(backbone.description["channels"], np.float32)
    for result in extract_features(backbone, sample, ["whole"], 32, workers, read):
        if isinstance(result, Extracted):
            # fmax ignores NaN, which the writer reports.
            np.fmax(largest, np.abs(result.grid).max((0, 1)), out=largest)
    return scale_for(largest)


def pictures_at_once(batch_size: int, views: int) -> int:
    """Return how many pictures, each with all its views, make a batch of about `batch_size`."""
    return max(1, batch_size // views)


def extract_features(
    backbone: Backbone,
    pictures: Sequence[Source],
    views: Sequence[str],
    batch_size: int,
    workers: int | None = None,
    read: Callable[[Source], Image.Image] | None = None,
    processes: bool | None = None,
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
        processes: let each thread decode in a process of its own, which `read` and one-by-one
            backbones forbid. By default where a GPU computes many pictures.
    """
    decode: Callable[[Any], Image.Image] = read or read_picture
    if backbone.one_by_one:
        return _one_by_one(backbone, pictures, views, workers or torch.get_num_threads(), decode)
    workers = workers or cores()
    if processes is None:
        processes = backbone.device.type == "cuda" and len(pictures) >= _MANY and read is None
    decoding: DecodingThreads | DecodingProcesses
    if processes:
        decoding = DecodingProcesses(backbone, views, batch_size, workers)
    else:
        decoding = DecodingThreads(backbone, views, batch_size, decode)
    return _in_batches(backbone, pictures, len(views), batch_size, workers, decoding)


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

    buffer: Buffer
    """The last batch may be padded with zeros."""
    errors: list[Future[PictureError | None]]
    """For each picture, why it cannot be read; done when it is decoded."""


class _Computing(NamedTuple):
    """Features on their way from the network."""

    buffer: Buffer
    errors: list[PictureError | None]
    grid: Tensor
    pooled: Tensor
    done: torch.cuda.Event | None
    """On a GPU, the event that the features have been copied."""


def _in_batches(
    backbone: Backbone,
    pictures: Sequence[Any],
    views: int,
    batch_size: int,
    workers: int,
    decoding: DecodingThreads | DecodingProcesses,
) -> Generator[Extracted | PictureError, None, None]:
    """Decode batches in threads while the network computes the previous one.

    All batches have the same size, including the last: the last digits of features and compiled
    networks depend on it.
    """
    cuda = backbone.device.type == "cuda"

    def begin(start: int) -> _Batch:
        of_batch = pictures[start : start + batch_size]
        buffer = decoding.take(len(of_batch))
        errors = [pool.submit(decoding.decode, p, buffer, n) for n, p in enumerate(of_batch)]
        return _Batch(buffer, errors)

    def compute(batch: _Batch) -> _Computing:
        errors = [error.result() for error in batch.errors]
        computed = backbone.run(batch.buffer.pixels.flatten(0, 1))
        grid, pooled = (part.to("cpu", non_blocking=True) for part in computed)
        done = torch.cuda.Event() if cuda else None
        if done:
            done.record()
        return _Computing(batch.buffer, errors, grid, pooled, done)

    with decoding, threads(workers) as pool:
        starts = range(0, len(pictures), batch_size)
        begun = ahead((begin(start) for start in starts), decoding.ahead)
        # A GPU receives the next batch before the features of this one are copied back.
        for computing in ahead((compute(batch) for batch in begun), int(cuda)):
            if computing.done:
                computing.done.synchronize()
            decoding.give_back(computing.buffer)
            grid, pooled = computing.grid.numpy(), computing.pooled.numpy()
            grids = grid.reshape(batch_size, views, *grid.shape[1:])
            means = pooled.reshape(batch_size, views, -1)
            for error, *features in zip(computing.errors, grids, means, strict=False):
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
