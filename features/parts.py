"""The parts of an unfinished store: each process appends what it extracts to a file of its own.

    features.parts/parts.json        the row format
    features.parts/TIME-RANDOM.part  the records of one process, in the order it wrote them

A record is a header (magic, CRC-32 of all that follows, image id, status, payload size in bytes)
and a payload. The payload is the reason why the image failed, or the sizes of its chunks, its
checksums, its pooled features, the number of its regions where it varies, and the chunks. A process
never appends to an existing file, and a file is read up to its first incomplete record. So whatever
stops a process, exactly the records that it finished are kept.
"""

import math
import os
import struct
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from string import digits
from typing import BinaryIO, NamedTuple

import numpy as np
from isal import isal_zlib

from features.errors import UserError, first_few, unreadable
from features.files import flush, reading, sync
from features.row_format import Packed, Record, RowFormat, checksum, to_float16
from features.store import FAILED, STORED

_MAGIC = b"row2"
_HEADER = struct.Struct("<4sI")  # magic, CRC-32 of all that follows
_FIELDS = struct.Struct("<qII")  # image id, status, payload size in bytes
_FSYNC_SECONDS = 1.0  # the most work that a power cut can cost
_MAX_REASON_BYTES = 1000
CONTINUES = "what was stored is kept, and the same command continues from there"
"""What to do where the disk is full, for the user."""


class PartWriter:
    """Appends what one process extracts to a new file in the parts folder.

    Args:
        folder: the parts folder.
        row_format: the format of the rows.
        workers: number of threads that encode rows; one thread appends them, in their order.
        advice: what to do if the file cannot be written, for the user.

    Raises:
        UserError: the file cannot be written, for example to a full disk; what was written before
            is kept.
    """

    def __init__(
        self, folder: Path, row_format: RowFormat, workers: int = 1, advice: str = CONTINUES
    ) -> None:
        self.row_format = row_format
        self._advice = advice
        self._pool = ThreadPoolExecutor(workers) if workers > 1 else None
        # Names are in the order of time, also after the clock was set back.
        now = max(time.time_ns(), *(1 + _time_of(path) for path in _part_files(folder)), 0)
        self.path = folder / f"{now}-{uuid.uuid4().hex[:8]}.part"
        with self._disk_errors():
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            sync(folder)
        self._synced = time.monotonic()

    def put(
        self,
        image_ids: Sequence[int],
        grid: np.ndarray,
        pooled: np.ndarray,
        regions: Sequence[int] | None = None,
    ) -> None:
        """Store the features of n images, clipped to the range of the stored type.

        Args:
            image_ids: the ids of the n images.
            grid: float32 [n, views, regions, channels].
            pooled: float32 [n, views, channels].
            regions: the number of regions of each image, where it varies; all others are zero.

        Raises:
            UserError: a value is NaN, or the disk is full.
        """
        row_format = self.row_format
        shape = (len(image_ids), len(row_format.views), row_format.regions, row_format.channels)
        if grid.shape != shape or pooled.shape != (*shape[:2], shape[3]):
            raise ValueError(f"expected features {shape}, found {grid.shape} and {pooled.shape}")
        counts: Sequence[int | None] = [None] * len(image_ids) if regions is None else regions
        each_in_turn: Callable[..., Iterator[bytes]] = self._pool.map if self._pool else map
        records = list(each_in_turn(self._encoded, image_ids, grid, pooled, counts))
        broken = [i for i, record in zip(image_ids, records, strict=True) if not record]
        if broken:
            raise UserError(
                f"the network returned NaN for {len(broken)} images: {first_few(broken)}; its "
                "weights or the device are broken"
            )
        self._append(b"".join(records))

    def _encoded(
        self, image_id: int, grid: np.ndarray, pooled: np.ndarray, count: int | None
    ) -> bytes:
        """Return the record of an image; nothing if one of its values is NaN."""
        if np.isnan(grid).any() or np.isnan(pooled).any():
            return b""
        means, grids = to_float16(pooled), self.row_format.quantise(grid)
        pairs = zip(means, grids, strict=True)
        sums = np.array([[checksum(p), checksum(g, count or 0)] for p, g in pairs], "<u4")
        chunks = [self.row_format.pack(g) for g in grids]
        return _encode(Record(image_id, Packed(means, chunks, sums, count)))

    def fail(self, image_id: int, reason: str) -> None:
        """Record why the picture of an image cannot be read.

        Raises:
            UserError: the disk is full.
        """
        self._append(_encode(Record(image_id, None, reason)))

    def close(self) -> None:
        """Flush what was written to the disk and close the file."""
        if self._pool:
            self._pool.shutdown()
        with self._disk_errors():
            flush(self._file)
            os.close(self._file)

    def _append(self, data: bytes) -> None:
        left = memoryview(data)
        with self._disk_errors():
            while left:  # a nearly full disk writes only some of it before it fails
                left = left[os.write(self._file, left) :]
            if time.monotonic() - self._synced > _FSYNC_SECONDS:
                flush(self._file)
                self._synced = time.monotonic()

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; {self._advice}"
            ) from error


class Place(NamedTuple):
    """Where a record lies: its file, offset and size, and whether it has features."""

    path: Path
    start: int
    bytes: int
    stored: bool


def scan(folder: Path, row_format: RowFormat) -> dict[int, Place]:
    """Return the place of each image's record in a parts folder, by image id.

    Incomplete records are ignored. If an image has several, the last one with features
    counts, because its picture may have changed, else the last one.

    Raises:
        AccessError: a file or the folder cannot be read.
    """
    most = len(row_format.views) * (12 + 2 * row_format.channels + row_format.packed_bytes[1]) + 4
    found: dict[int, Place] = {}
    for path in _part_files(folder):
        with reading(path), path.open("rb") as file:
            start = 0
            while data := _read(file, max(most, _MAX_REASON_BYTES)):
                image_id, status, _ = _FIELDS.unpack_from(data, _HEADER.size)
                if status == STORED or image_id not in found or not found[image_id].stored:
                    found[image_id] = Place(path, start, len(data), status == STORED)
                start += len(data)
    return found


def _part_files(folder: Path) -> list[Path]:
    """Return the parts in a folder, which may be missing, in the order they were started."""
    try:
        names = os.listdir(folder)  # noqa: PTH208 - Path.glob passes over a folder it cannot read
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(folder, error) from error
    # macOS writes files such as ._1764.part beside them on some disks.
    parts = [folder / name for name in names if name.endswith(".part") and name[:1].isdigit()]
    return sorted(parts, key=lambda path: (_time_of(path), path.name))


def _time_of(part: Path) -> int:
    """Return when a part was started, as its name says, which begins with digits."""
    return int(part.name[: -len(part.name.lstrip(digits))])


def read_record(place: Place, row_format: RowFormat) -> Record:
    """Read a record that `scan` found.

    Raises:
        AccessError: its file cannot be read.
        UserError: it has been damaged since.
    """
    with reading(place.path), place.path.open("rb") as file:
        file.seek(place.start)
        data = _read(file, place.bytes)
    if not data:
        raise UserError(
            f"{place.path} was damaged meanwhile; run the same command again to restore it"
        )
    return _decode(data, row_format)


def _read(file: BinaryIO, most: int) -> bytes:
    """Return the next record, or nothing if it is incomplete or damaged."""
    head = file.read(_HEADER.size + _FIELDS.size)
    if len(head) < _HEADER.size + _FIELDS.size:
        return b""
    magic, crc = _HEADER.unpack_from(head)
    payload_bytes = _FIELDS.unpack_from(head, _HEADER.size)[2]
    if magic != _MAGIC or payload_bytes > most:
        return b""
    data = head + file.read(payload_bytes)
    complete = len(data) == len(head) + payload_bytes
    return data if complete and isal_zlib.crc32(data[_HEADER.size :]) == crc else b""


def _encode(record: Record) -> bytes:
    if record.packed is None:
        status, payload = FAILED, record.reason.encode()[:_MAX_REASON_BYTES]
    else:
        sizes = np.array([len(chunk) for chunk in record.packed.chunks], "<u4")
        arrays = [sizes, record.packed.checksums, record.packed.pooled]
        if record.packed.regions is not None:
            arrays.append(np.array(record.packed.regions, "<u4"))
        status = STORED
        payload = b"".join([*(array.tobytes() for array in arrays), *record.packed.chunks])
    rest = _FIELDS.pack(record.image_id, status, len(payload)) + payload
    return _HEADER.pack(_MAGIC, isal_zlib.crc32(rest)) + rest


def _decode(data: bytes, row_format: RowFormat) -> Record:
    image_id, status, _ = _FIELDS.unpack_from(data, _HEADER.size)
    start = _HEADER.size + _FIELDS.size
    if status == FAILED:
        return Record(image_id, None, data[start:].decode(errors="ignore"))
    views, channels = len(row_format.views), row_format.channels
    arrays = []
    for dtype, shape in (("<u4", (views,)), ("<u4", (views, 2)), ("<f2", (views, channels))):
        array = np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape)
        arrays.append(array)
        start += array.nbytes
    sizes, checksums, pooled = arrays
    regions = None
    if row_format.varies:
        regions = int(np.frombuffer(data, "<u4", 1, start)[0])
        start += 4
    ends = start + np.cumsum(sizes, dtype=np.int64)
    chunks = [data[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    return Record(image_id, Packed(pooled, chunks, checksums, regions))
