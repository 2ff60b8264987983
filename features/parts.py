"""The parts of a store in the making: each process appends what it extracts to its own file.

    features.parts/parts.json       what the rows hold and how they are written
    features.parts/TIME-RANDOM.part  the records that one process wrote, in the order it wrote them

A record is a header (magic, CRC-32 of all that follows, image id, status, bytes of the payload) and
a payload: why the image failed, or the sizes of its chunks, its checksums, its pooled features and
the chunks. Nobody ever appends to a file that was there, and a file counts up to its first record
that is not whole: whatever stops a process, all that it finished before is kept, and only that.
"""

import math
import os
import struct
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from isal import isal_zlib

from features.errors import UserError, first_few
from features.row_format import Packed, Record, RowFormat, checksum, to_float16
from features.store import FAILED, STORED

_MAGIC = b"row2"
_HEADER = struct.Struct("<4sI")  # magic, CRC-32 of all that follows
_FIELDS = struct.Struct("<qII")  # image id, status, bytes of the payload
_FSYNC_SECONDS = 1.0  # what a power cut may cost
_MOST_REASON = 1000


class PartWriter:
    """Appends what one process extracts to a new file in the parts folder.

    Raises:
        UserError: the file cannot be written, as the disk is full; what was written is kept.
    """

    def __init__(self, folder: Path, row_format: RowFormat) -> None:
        self.row_format = row_format
        self.path = folder / f"{time.time_ns()}-{uuid.uuid4().hex[:8]}.part"
        with self._disk_errors():
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            sync(folder)
        self._synced = time.monotonic()

    def put(self, image_ids: Sequence[int], grid: np.ndarray, pooled: np.ndarray) -> None:
        """Store the features of images.

        Values beyond the range of the stored type are clipped to it.

        Args:
            image_ids: of n images.
            grid: float32 [n, views, regions, channels].
            pooled: float32 [n, views, channels].

        Raises:
            UserError: a value is not a number, or the disk is full.
        """
        kind = self.row_format
        shape = (len(image_ids), len(kind.views), kind.regions, kind.channels)
        if grid.shape != shape or pooled.shape != (*shape[:2], shape[3]):
            raise ValueError(f"expected features {shape}, found {grid.shape} and {pooled.shape}")
        broken = np.isnan(grid).any((1, 2, 3)) | np.isnan(pooled).any((1, 2))
        if broken.any():
            ids = np.asarray(image_ids)[broken]
            raise UserError(
                f"the network gave values that are no numbers for {len(ids)} images: "
                f"{first_few(ids)}; its weights or the device are broken"
            )
        records = []
        rows = zip(image_ids, kind.quantise(grid), to_float16(pooled), strict=True)
        for image_id, grids, means in rows:
            sums = [[checksum(p), checksum(g)] for p, g in zip(means, grids, strict=True)]
            packed = Packed(means, [kind.pack(g) for g in grids], np.array(sums, "<u4"))
            records.append(_encode(Record(image_id, packed)))
        self._append(b"".join(records))

    def fail(self, image_id: int, reason: str) -> None:
        """Record that the picture of an image cannot be read, and why.

        Raises:
            UserError: the disk is full.
        """
        self._append(_encode(Record(image_id, None, reason)))

    def close(self) -> None:
        """Bring what was written to the disk and close the file."""
        with self._disk_errors():
            os.fsync(self._file)
            os.close(self._file)

    def _append(self, data: bytes) -> None:
        left = memoryview(data)
        with self._disk_errors():
            while left:  # a nearly full disk takes a part before it refuses
                left = left[os.write(self._file, left) :]
            if time.monotonic() - self._synced > _FSYNC_SECONDS:
                os.fsync(self._file)
                self._synced = time.monotonic()

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; what was stored is kept, and the "
                "same command continues from there"
            ) from error


class Place(NamedTuple):
    """Where a record lies."""

    path: Path
    start: int
    bytes: int
    stored: bool


def scan(folder: Path, row_format: RowFormat) -> dict[int, Place]:
    """Find the whole records in a parts folder, by image id; one that is stored before a failed."""
    most = len(row_format.views) * (12 + 2 * row_format.channels + row_format.packed_bytes[1])
    found: dict[int, Place] = {}
    for path in sorted(folder.glob("*.part")):
        with path.open("rb") as file:
            start = 0
            while data := _read(file, max(most, _MOST_REASON)):
                image_id, status, _ = _FIELDS.unpack_from(data, _HEADER.size)
                if image_id not in found or not found[image_id].stored:
                    found[image_id] = Place(path, start, len(data), status == STORED)
                start += len(data)
    return found


def read_record(place: Place, row_format: RowFormat) -> Record:
    """Read a record that `scan` found.

    Raises:
        UserError: it is not whole any more.
    """
    with place.path.open("rb") as file:
        file.seek(place.start)
        data = _read(file, place.bytes)
    if not data:
        raise UserError(f"{place.path} was damaged meanwhile; the same command redoes what is lost")
    return _decode(data, row_format)


def sync(path: Path) -> None:
    """Bring a file to the disk, or what a folder says its files are called."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _read(file: BinaryIO, most: int) -> bytes:
    """Return the next record, or nothing if what is left is not a whole one."""
    head = file.read(_HEADER.size + _FIELDS.size)
    if len(head) < _HEADER.size + _FIELDS.size:
        return b""
    magic, crc = _HEADER.unpack_from(head)
    payload_bytes = _FIELDS.unpack_from(head, _HEADER.size)[2]
    if magic != _MAGIC or payload_bytes > most:
        return b""
    data = head + file.read(payload_bytes)
    whole = len(data) == len(head) + payload_bytes
    return data if whole and isal_zlib.crc32(data[_HEADER.size :]) == crc else b""


def _encode(record: Record) -> bytes:
    if record.packed is None:
        status, payload = FAILED, record.reason.encode()[:_MOST_REASON]
    else:
        sizes = np.array([len(chunk) for chunk in record.packed.chunks], "<u4")
        arrays = (sizes, record.packed.checksums, record.packed.pooled)
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
    ends = start + np.cumsum(sizes, dtype=np.int64)
    chunks = [data[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    return Record(image_id, Packed(pooled, chunks, checksums))
