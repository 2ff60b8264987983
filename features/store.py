"""Reading the feature store: the features of every picture, in one HDF5 file.

    /image_id  int64   [N]                     in the order of captions.json
    /status    uint8   [N]                     1 stored, 2 failed
    /failure   bytes   [N], 200 each           UTF-8, why the image failed
    /pooled    float16 [N, channels]           mean over the last feature map
    /grid      float16 [N, regions, channels]  regions row by row, from the top left; or int8
    /checksum  uint32  [N, 2]                  CRC-32 of the pooled features and of the grid
    /scale     float32 [channels]              only if /grid is int8: multiply by it
    /regions   uint32  [N]                     only if it varies: how many regions an image has
    /key       UTF-8   [N], of one length      only of a shard: the key of which the id was made

Where several views of each image are stored, /pooled, /grid and /checksum are [N, views, ...].
The attributes are JSON. The fields of the description (see `features.backbones`) make up the
fingerprint; "format", "views", "compression" and "versions" are not part of it.

The grid of one view is one chunk, either raw or deflated, which every HDF5 library can read. Here
HDF5 is only asked once where the chunks lie; they are then read and inflated without it: without
locks, caches or memory beyond the requested rows, from any number of threads and processes. Every
row is checked against its checksum when it is read.

A store appears complete or not at all, and never changes (see `features.store_writing`).
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import h5py
import numpy as np
from isal import isal_zlib

from features.commands import EXTRACT
from features.errors import UserError, first_few, unreadable
from features.files import reading
from features.row_format import Packed, Record, RowFormat, checksum, to_float32
from features.store_errors import opening_error, read_bytes, replaced_error
from features.store_layout import REASON_BYTES, chunk_index, layout, start_of

FORMAT = 2
STORED, FAILED = 1, 2
_NOT_DESCRIBED = ("format", "views", "compression", "versions")
# In a description, but without effect on the features: version 0.1 recorded "format", and
# "weights_file" says where the weights lay that "weights_sha256" stands for.
_WITHOUT_EFFECT = ("format", "weights_file")

# What h5py may raise for a file that is damaged or not a store.
_DAMAGED: tuple[type[Exception], ...] = (
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
)

Rows = Sequence[int] | np.ndarray


class _Identity(NamedTuple):
    device: int
    inode: int
    size: int
    modified: int


def fingerprint(description: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the description's canonical JSON, in hexadecimal.

    What does not affect the features is left out; see `decisive`.
    """
    canonical = json.dumps(decisive(description), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def decisive(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the features depend on: all but the keys of `_WITHOUT_EFFECT`."""
    return {key: value for key, value in description.items() if key not in _WITHOUT_EFFECT}


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Return the fields in which two descriptions differ, as text.

    If the backbones differ, only they are named: all other differences follow from that.
    """
    wanted, found = decisive(wanted), decisive(found)
    fields = [key for key in {**wanted, **found} if wanted.get(key) != found.get(key)]
    if "backbone" in fields:
        fields = ["backbone"]
    return ", ".join(f"{key} {found.get(key)} instead of {wanted.get(key)}" for key in fields)


class _Described(Protocol):
    path: Path
    description: dict[str, Any]
    fingerprint: str


def expect_fingerprint(
    store: _Described, wanted: str, what: str, description: Mapping[str, Any] | None
) -> None:
    """Raise UserError unless a store has the fingerprint `wanted`; see `FeatureStore.expect`."""
    if store.fingerprint == wanted:
        return
    other = "" if description is None else f": {differences(description, store.description)}"
    raise UserError(
        f"{what} expects features with the fingerprint {wanted[:12]}, {store.path} has "
        f"{store.fingerprint[:12]}{other}; extract the features in the same way, or use "
        f"another --work"
    )


def as_size(count: int) -> str:
    """Format a number of bytes as MB or GB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


class FeatureStore:
    """A store, open for reading. It can be pickled, forked and shared between threads.

    Attributes:
        description: everything the features depend on; see `features.backbones`.
        fingerprint: SHA-256 of the description.
        row_format: the description, the views and the encoding of the rows.
        image_ids: int64 [N].
        status: uint8 [N], `STORED` or `FAILED`.
        regions: int64 [N], the number of regions of each image; None if it does not vary. The grid
            is zero beyond it.

    Raises:
        AccessError: the file cannot be read now, for example because another program writes to it.
        UserError: the file is missing, truncated, not a feature store or has another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with reading(path):
                self._file = os.open(path, os.O_RDONLY)
                self._identity = _identity(os.fstat(self._file))
            # A store never changes, so it needs no lock, and some network disks have none.
            with h5py.File(path, "r", locking=False) as file:
                self._read_layout(file)
            with reading(path):
                replaced = _identity(path.stat()) != self._identity
        except FileNotFoundError as error:
            raise UserError(f"{path} is not there; create it with {EXTRACT}") from error
        except _DAMAGED as error:
            raise opening_error(self.path, self._file, self._identity.size, error) from error
        if replaced:
            raise replaced_error(self.path)
        self.fingerprint = fingerprint(self.description)

    def _read_layout(self, file: h5py.File) -> None:
        types = {key: file.attrs.get_id(key).dtype for key in file.attrs}
        if not all(isinstance(key, str) for key in types):
            raise ValueError("the name of an attribute is not text")
        # Format 1 had strings of variable length. They are not read, because HDF5 loops for ever
        # over damaged ones.
        old = any(dtype.hasobject for dtype in types.values()) and "format" in types
        found = 1 if old else json.loads(file.attrs["format"])
        if found != FORMAT:
            raise UserError(
                f"{self.path} has format {found}, this version reads format {FORMAT}; delete it "
                f"and run {EXTRACT} again"
            )
        attributes = {key: json.loads(value) for key, value in file.attrs.items()}
        self.description = {k: v for k, v in attributes.items() if k not in _NOT_DESCRIBED}
        kind = RowFormat(self.description, attributes["views"], attributes["compression"])
        count = len(file["image_id"])
        expected = layout(count, kind)
        for name, (shape, dtype) in expected.items():
            if (file[name].shape, file[name].dtype) != (shape, dtype):
                raise ValueError(
                    f"/{name} is {file[name].dtype} {file[name].shape}, not {dtype} {shape}"
                )
        # Only data that is contiguous and inside the file is read in one piece, so a forged size
        # cannot exhaust memory.
        starts = {
            name: start_of(file[name], self._identity.size) for name in expected if name != "grid"
        }
        self._of_shard = "key" in file
        self._pooled_start = starts["pooled"]
        self.row_format = replace(kind, scale=file["scale"][:]) if "scale" in expected else kind
        self.image_ids: np.ndarray = file["image_id"][:]
        self._order = np.argsort(self.image_ids, kind="stable")
        if not np.diff(self.image_ids[self._order]).all():
            raise ValueError("an image occurs twice")
        self.status: np.ndarray = file["status"][:]
        if not np.isin(self.status, (STORED, FAILED)).all():
            raise ValueError("the status of a row is neither stored nor failed")
        self._reasons = {
            row: self._bytes(starts["failure"] + row * REASON_BYTES, REASON_BYTES)
            .rstrip(b"\0")
            .decode(errors="replace")
            for row in np.flatnonzero(self.status == FAILED).tolist()
        }
        self.regions: np.ndarray | None = None
        if kind.varies:
            self.regions = file["regions"][:].astype(np.int64)
            counts = self.regions[self.status == STORED]
            if ((counts < 1) | (counts > kind.regions)).any():
                raise ValueError("the number of an image's regions is 0 or too large")
        self._checksums = file["checksum"][:].reshape(count, len(kind.views), 2)
        self._offsets, self._sizes = chunk_index(
            file["grid"], self.row_format, self.status == STORED, self._identity.size
        )

    def __len__(self) -> int:
        return len(self.image_ids)

    def crc(self) -> int:
        """Return a CRC-32 of the image ids and of the checksums of all rows."""
        return isal_zlib.crc32(self._checksums.tobytes(), isal_zlib.crc32(self.image_ids.tobytes()))

    def stored_rows(self) -> Iterator[np.ndarray]:
        """Yield the rows of stored images, ascending; all at once."""
        yield np.flatnonzero(self.status == STORED)

    def failures(self) -> dict[int, str]:
        """Return the reason of each failed image, by image id."""
        return {int(self.image_ids[row]): reason for row, reason in self._reasons.items()}

    def rows(self, image_ids: Sequence[int]) -> np.ndarray:
        """Return the rows, int64 [n], of images.

        Raises:
            UserError: some images are not in the store, or failed.
        """
        wanted = np.asarray(image_ids, dtype=np.int64)
        places = np.searchsorted(self.image_ids, wanted, sorter=self._order)
        rows = self._order[np.minimum(places, len(self) - 1)]
        found = self.image_ids[rows] == wanted
        if not found.all():
            raise UserError(
                f"{self.path}: {(~found).sum()} images are not in the store: "
                f"{first_few(wanted[~found])}; run {EXTRACT} again with the same options"
            )
        failed = wanted[self.status[rows] == FAILED]
        if len(failed):
            raise UserError(f"{self.path}: {len(failed)} images failed: {first_few(failed)}")
        return rows

    def grid(self, rows: Rows, views: Rows | None = None, regions: int | None = None) -> np.ndarray:
        """Return the grid features of `rows` [n] as float32 [n, regions, channels].

        Args:
            rows: rows of stored images; see `rows`.
            views: the view of each row; by default the first.
            regions: how many regions to return, from the first on; by default all.

        Raises:
            AccessError: the store cannot be read now.
            UserError: a row is damaged.
        """
        count = self.row_format.regions if regions is None else regions
        out = np.empty((len(rows), count, self.row_format.channels), np.float32)
        for place, into in zip(self._places(rows, views), out, strict=True):
            with self._damage_named(*place):
                self.row_format.dequantise(self._grid(*place)[:count], into)
        return out

    def pooled(self, rows: Rows, views: Rows | None = None) -> np.ndarray:
        """Return the pooled features as float32 [n, channels]; see `grid`."""
        out = np.empty((len(rows), self.row_format.channels), np.float32)
        for place, into in zip(self._places(rows, views), out, strict=True):
            with self._damage_named(*place):
                to_float32(self._pooled(*place), into)
        return out

    def check(self, row: int) -> str:
        """Return what is wrong with a stored row, or an empty string.

        Raises:
            AccessError: the store cannot be read now.
        """
        for view, name in enumerate(self.row_format.views):
            for read in (self._pooled, self._grid):
                try:
                    read(row, view)
                except ValueError as error:
                    return f"view {name}: {error}"
                except OSError as error:
                    raise unreadable(self.path, error) from error
        return ""

    def record(self, row: int) -> Record:
        """Return a row as it is stored; its grid stays packed and is not checked.

        Raises:
            UserError: the pooled features are damaged.
        """
        image_id = int(self.image_ids[row])
        if row in self._reasons:
            return Record(image_id, None, self._reasons[row])
        with self._damage_named(row, 0):
            views = range(len(self.row_format.views))
            pooled = np.stack([self._pooled(row, view) for view in views])
            chunks = [self._chunk(row, view) for view in views]
        regions = None if self.regions is None else int(self.regions[row])
        return Record(image_id, Packed(pooled, chunks, self._checksums[row], regions))

    def expect(self, wanted: str, what: str, description: Mapping[str, Any] | None = None) -> None:
        """Check that the store has the fingerprint `wanted`, which `what` expects.

        Raises:
            UserError: it has another one. The message names the fields in which the store differs
                from `description`, the one that `what` expects, if it is given.
        """
        expect_fingerprint(self, wanted, what, description)

    def _places(self, rows: Rows, views: Rows | None) -> Iterator[tuple[int, int]]:
        for row, view in zip(rows, [0] * len(rows) if views is None else views, strict=True):
            if not (0 <= row < len(self) and 0 <= view < len(self.row_format.views)):
                raise IndexError(f"row {row}, view {view} of {self.path}, which has {len(self)}")
            if self.status[row] != STORED:
                raise UserError(f"{self.path}: image {self.image_ids[row]} failed")
            yield int(row), int(view)

    def _grid(self, row: int, view: int) -> np.ndarray:
        grid = self.row_format.unpack(self._chunk(row, view))
        start = 0 if self.regions is None else int(self.regions[row])
        if checksum(grid, start) != self._checksums[row, view, 1]:
            raise ValueError("its grid does not match its checksum")
        return grid

    def _pooled(self, row: int, view: int) -> np.ndarray:
        bytes_ = 2 * self.row_format.channels
        place = row * len(self.row_format.views) + view
        pooled = np.frombuffer(self._bytes(self._pooled_start + place * bytes_, bytes_), "<f2")
        if checksum(pooled) != self._checksums[row, view, 0]:
            raise ValueError("its pooled features do not match their checksum")
        return pooled

    def _chunk(self, row: int, view: int) -> bytes:
        return self._bytes(int(self._offsets[row, view]), int(self._sizes[row, view]))

    def _bytes(self, start: int, count: int) -> bytes:
        return read_bytes(self._file, start, count)

    @contextmanager
    def _damage_named(self, row: int, view: int) -> Iterator[None]:
        """Turn an error of reading a row into a UserError that names the image."""
        try:
            yield
        except OSError as error:
            raise unreadable(self.path, error) from error
        except ValueError as error:
            name = f", view {self.row_format.views[view]}" if view else ""
            advice = (
                f"{EXTRACT} --verify lists all damaged images; --force with the options of the "
                "first extraction extracts all again"
            )
            if self._of_shard:
                advice = f"delete that file, and {EXTRACT} --shards makes it again"
            raise UserError(
                f"{self.path} is damaged: image {self.image_ids[row]}{name}: {error}; {advice}"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_file"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        with reading(self.path):
            self._file = os.open(self.path, os.O_RDONLY)
        if _identity(os.fstat(self._file)) != self._identity:
            raise replaced_error(self.path)

    def __del__(self) -> None:
        if "_file" in self.__dict__:
            os.close(self._file)


def _identity(status: os.stat_result) -> _Identity:
    return _Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
