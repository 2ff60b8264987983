"""The feature store: what the frozen CNN saw in every picture, as one HDF5 file.

    /image_id  int64   [N]                     in the order of the caption table
    /status    uint8   [N]                     0 not yet, 1 stored, 2 failed
    /failure   bytes   [N], 200 each           UTF-8, why it failed
    /pooled    float16 [N, channels]           mean over the last feature map
    /grid      float16 [N, regions, channels]  regions row by row, from the top left

Attributes, as JSON: the fields of the description (see `features.backbones`), which make the
fingerprint, and "versions", the libraries that made the file, which do not.

The data sets are contiguous and allocated when the file is made, so that all of HDF5's own
structures are written once, before the first feature. From then on rows are written and read as
plain bytes at known offsets. Nothing that happens to the writing process can damage the file, and
reading takes no lock and no memory beyond the rows asked for.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import filelock
import h5py
import numpy as np

from features.errors import UserError, first_few

FORMAT = 1
PENDING, STORED, FAILED = range(3)
_REASON_BYTES = 200
_MAX_FLOAT16 = float(np.finfo(np.float16).max)
_MADE_BY = "python -m pipeline.extract"


def fingerprint(description: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the description's canonical JSON, in hexadecimal."""
    canonical = json.dumps(description, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def to_float16(values: np.ndarray) -> np.ndarray:
    """Return `values` as the store keeps them: float16, clipped to its range (65504)."""
    return np.clip(values, -_MAX_FLOAT16, _MAX_FLOAT16).astype(np.float16)


def store_bytes(images: int, description: Mapping[str, Any]) -> int:
    """Return the size in bytes of a store of `images` images, its small header aside."""
    return sum(
        math.prod(shape) * dtype.itemsize for shape, dtype in _layout(images, description).values()
    )


def as_size(count: int) -> str:
    """Return a number of bytes as people read it."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


class FeatureStore:
    """Reads a store. It can be pickled and forked: each process opens the file for itself.

    Attributes:
        description: what made the features; see `features.backbones`.
        fingerprint: SHA-256 of the description.
        image_ids: int64 [N].
        status: uint8 [N], `PENDING`, `STORED` or `FAILED`, as of opening.

    Raises:
        UserError: the file is missing, truncated, not a feature store or of another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with h5py.File(path, "r") as file:
                self._read_layout(file)
                self.image_ids: np.ndarray = file["image_id"][:]
                self.status: np.ndarray = file["status"][:]
                reasons = file["failure"][:]
        except FileNotFoundError as error:
            raise UserError(f"{path} is not there; {_MADE_BY} makes it") from error
        except (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            why = " ".join(str(error).split())  # HDF5 breaks its messages into lines
            raise UserError(
                f"{path} is not a feature store, or is damaged ({why}); delete it and run "
                f"{_MADE_BY} again"
            ) from error
        self.fingerprint = fingerprint(self.description)
        self._failures = {
            int(self.image_ids[row]): reasons[row].decode(errors="replace")
            for row in np.flatnonzero(self.status == FAILED)
        }
        self._order = np.argsort(self.image_ids, kind="stable")

    def _read_layout(self, file: h5py.File) -> None:
        found = json.loads(file.attrs["format"])
        if found != FORMAT:
            raise UserError(
                f"{self.path} has format {found}, this version reads format {FORMAT}; delete it "
                f"and run {_MADE_BY} again"
            )
        self.description: dict[str, Any] = {
            key: json.loads(value) for key, value in file.attrs.items() if key != "versions"
        }
        self.layout = _layout(len(file["image_id"]), self.description)
        self.offsets = {}
        for name, (shape, dtype) in self.layout.items():
            dataset = file[name]
            if (dataset.shape, dataset.dtype) != (shape, dtype):
                raise ValueError(f"/{name} is {dataset.dtype} {dataset.shape}, not {dtype} {shape}")
            self.offsets[name] = dataset.id.get_offset()
            end = (self.offsets[name] or 0) + math.prod(shape) * dtype.itemsize
            if self.offsets[name] is None or end > self.path.stat().st_size:
                raise ValueError(f"/{name} ends beyond the end of the file")

    def __len__(self) -> int:
        return len(self.image_ids)

    def failures(self) -> dict[int, str]:
        """Return the reason of each failed image, by image id."""
        return dict(self._failures)

    def rows(self, image_ids: Sequence[int]) -> np.ndarray:
        """Return the rows, int64 [n], of images that are all stored.

        Raises:
            UserError: some are not in the store, are not extracted yet or failed.
        """
        wanted = np.asarray(image_ids, dtype=np.int64)
        places = np.searchsorted(self.image_ids, wanted, sorter=self._order)
        rows = self._order[np.minimum(places, len(self) - 1)]
        found = self.image_ids[rows] == wanted
        if not found.all():
            raise UserError(
                f"{self.path}: {(~found).sum()} images are not in the store: "
                f"{first_few(wanted[~found])}; run {_MADE_BY} again"
            )
        for status, words in ((PENDING, "are not extracted yet"), (FAILED, "failed")):
            bad = wanted[self.status[rows] == status]
            if len(bad):
                raise UserError(f"{self.path}: {len(bad)} images {words}: {first_few(bad)}")
        return rows

    def grid(self, rows: np.ndarray) -> np.ndarray:
        """Return the grid features of `rows` [n] as float16 [n, regions, channels]."""
        return self._read("grid", rows)

    def pooled(self, rows: np.ndarray) -> np.ndarray:
        """Return the pooled features of `rows` [n] as float16 [n, channels]."""
        return self._read("pooled", rows)

    def expect(self, wanted: str, what: str, description: Mapping[str, Any] | None = None) -> None:
        """Check that the store has the fingerprint `wanted`, which belongs to `what`.

        Raises:
            UserError: it has another; the differing fields are named if `what`'s own
                `description` is given.
        """
        if self.fingerprint == wanted:
            return
        other = "" if description is None else f": {differences(description, self.description)}"
        raise UserError(
            f"{what} expects features with the fingerprint {wanted[:12]}, {self.path} has "
            f"{self.fingerprint[:12]}{other}; extract the features in the same way, or use "
            f"another --work"
        )

    @cached_property
    def _file(self) -> int:
        return os.open(self.path, os.O_RDONLY)

    def __del__(self) -> None:
        if "_file" in self.__dict__:
            os.close(self._file)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_file"}

    def _read(self, name: str, rows: np.ndarray) -> np.ndarray:
        shape, dtype = self.layout[name]
        out = np.empty((len(rows), *shape[1:]), dtype)
        for row, into in zip(rows, out, strict=True):
            if not 0 <= row < len(self):
                raise IndexError(f"row {row} of a store of {len(self)} rows")
            offset = self.offsets[name] + int(row) * into.nbytes
            if os.preadv(self._file, [into], offset) != into.nbytes:
                raise UserError(f"{self.path} became shorter while it was read")
        return out


class StoreWriter:
    """Writes rows into a store whose layout exists; see `open_for_writing`.

    A row's status is written last, when its features are on the disk.

    Attributes:
        image_ids: int64 [N].
        status: uint8 [N], kept up to date.
    """

    def __init__(self, path: Path) -> None:
        self._store = FeatureStore(path)
        self.image_ids = self._store.image_ids
        self.status = self._store.status
        self._file = os.open(path, os.O_RDWR)

    def close(self) -> None:
        """Bring the last status to the disk and close the file."""
        os.fsync(self._file)
        os.close(self._file)

    def put(self, rows: Sequence[int], grid: np.ndarray, pooled: np.ndarray) -> None:
        """Store float features of `rows` [n]: [n, regions, channels] and [n, channels].

        Values beyond the range of float16 are clipped to it (65504).

        Raises:
            UserError: a value is not a number, or the disk is full.
        """
        broken = np.isnan(grid).any((1, 2)) | np.isnan(pooled).any(1)
        if broken.any():
            ids = self.image_ids[np.asarray(rows)[broken]]
            raise UserError(
                f"the network gave values that are no numbers for {len(ids)} images: "
                f"{first_few(ids)}; its weights or the device are broken"
            )
        with self._disk_errors():
            for name, values in (("grid", grid), ("pooled", pooled)):
                self._write(name, rows, to_float16(values))
            self._finish(rows, STORED)

    def fail(self, row: int, reason: str) -> None:
        """Mark `row` as failed for `reason`, of which 200 bytes are kept.

        Raises:
            UserError: the disk is full.
        """
        cut = reason.encode()[:_REASON_BYTES].decode(errors="ignore").encode()
        with self._disk_errors():
            self._write("failure", [row], np.array([cut]))
            self._finish([row], FAILED)

    def _finish(self, rows: Sequence[int], status: int) -> None:
        os.fsync(self._file)
        self._write("status", rows, np.full(len(rows), status))
        self.status[np.asarray(rows)] = status

    def _write(self, name: str, rows: Sequence[int], values: np.ndarray) -> None:
        shape, dtype = self._store.layout[name]
        if values.shape != (len(rows), *shape[1:]):
            raise ValueError(f"expected {len(rows)} rows of {shape[1:]} for /{name}")
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        data = memoryview(values.astype(dtype).tobytes())
        for i, row in enumerate(rows):
            left = data[i * row_bytes : (i + 1) * row_bytes]
            end = self._store.offsets[name] + (int(row) + 1) * row_bytes
            while left:  # a nearly full disk takes a part before it refuses
                left = left[os.pwrite(self._file, left, end - len(left)) :]

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write {self._store.path}: {error.strerror}; what was stored is kept, and "
                f"the same command continues from there"
            ) from error


@contextmanager
def open_for_writing(
    path: Path,
    description: Mapping[str, Any],
    image_ids: Sequence[int],
    versions: Mapping[str, str],
    force: bool = False,
) -> Iterator[StoreWriter]:
    """Make the store at `path`, or open it to continue, and yield its writer.

    A store with the same description but other images is made anew with the features that it has.
    With `force` it is made anew without them.

    Raises:
        UserError: another process writes it, the disk is too small, or the store there has another
            description: features of two kinds never meet in one file.
    """
    with _only_writer(path):
        old = FeatureStore(path) if path.exists() and not force else None
        if old is not None and old.fingerprint != fingerprint(description):
            raise UserError(
                f"{path} holds other features than asked for: "
                f"{differences(description, old.description)}; use another --work, or --force to "
                f"extract again"
            )
        same_images = old is not None and np.array_equal(old.image_ids, image_ids)
        # To copy features, the old store and the new one must both find room.
        kept = _disk_use(path) if old is None or same_images else 0
        check_disk(path, len(image_ids), description, kept)
        if not same_images:
            _create(path, description, image_ids, versions, old)
        writer = StoreWriter(path)
        try:
            yield writer
        finally:
            writer.close()


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Return the fields in which two descriptions differ, as text."""
    fields = [key for key in {**wanted, **found} if wanted.get(key) != found.get(key)]
    return ", ".join(f"{key} {found.get(key)} instead of {wanted.get(key)}" for key in fields)


def check_disk(path: Path, images: int, description: Mapping[str, Any], kept: int) -> None:
    """Raise UserError if the disk of `path` is too small for a store of `images` images.

    `kept` bytes of it are there already, or become free when it replaces an older store.
    """
    needed = store_bytes(images, description) - kept
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise UserError(
            f"{path} needs {as_size(needed)} more, but the disk has {as_size(free)} free; free "
            f"some space, take a smaller --grid, or a --work on another disk"
        )


def _disk_use(path: Path) -> int:
    return path.stat().st_blocks * 512 if path.exists() else 0


@contextmanager
def _only_writer(path: Path) -> Iterator[None]:
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise UserError(f"another process is writing {path}; wait until it ends") from error
    try:
        yield
    finally:
        lock.release()


def _layout(
    images: int, description: Mapping[str, Any]
) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Return the shape and type of each data set."""
    height, width = description["grid"]
    channels = description["channels"]
    return {
        "image_id": ((images,), np.dtype("<i8")),
        "status": ((images,), np.dtype("u1")),
        "failure": ((images,), np.dtype(f"S{_REASON_BYTES}")),
        "pooled": ((images, channels), np.dtype("<f2")),
        "grid": ((images, height * width, channels), np.dtype("<f2")),
    }


def _create(
    path: Path,
    description: Mapping[str, Any],
    image_ids: Sequence[int],
    versions: Mapping[str, str],
    old: FeatureStore | None,
) -> None:
    """Write the layout, and the features of `old` for images that are in both, to a new file."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        with h5py.File(temporary, "w") as file:
            for name, (shape, dtype) in _layout(len(image_ids), description).items():
                properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
                properties.set_layout(h5py.h5d.CONTIGUOUS)
                properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
                if name in ("grid", "pooled"):  # zeros would only be written to be overwritten
                    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
                file.create_dataset(name, shape, dtype, dcpl=properties)
            file["image_id"][:] = image_ids
            for key, value in {**description, "versions": dict(versions)}.items():
                file.attrs[key] = json.dumps(value)
        if old is not None:
            _copy_stored(old, temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _copy_stored(old: FeatureStore, path: Path) -> None:
    writer = StoreWriter(path)
    new_row = {int(image_id): row for row, image_id in enumerate(writer.image_ids)}
    kept = np.flatnonzero((old.status == STORED) & np.isin(old.image_ids, writer.image_ids))
    try:
        for rows in np.array_split(kept, math.ceil(len(kept) / 256) or 1):
            ids = old.image_ids[rows].tolist()
            writer.put([new_row[i] for i in ids], old.grid(rows), old.pooled(rows))
    finally:
        writer.close()
