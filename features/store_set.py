"""Many stores as one: the features of a folder of stores, one file for each shard of pictures.

A row of the set is a row of one of its stores. The stores follow one another in the order of their
names, and each keeps its rows. A store is opened when a row of it is read, and at most `MOST_OPEN`
are open at once. Opening one takes memory in proportion to its own rows; the set itself keeps the
name, the size and a CRC-32 of each shard, and nothing for each image.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from features.commands import EXTRACT, PREPARE
from features.errors import UserError, first_few
from features.store import STORED, FeatureStore, Rows, differences, expect_fingerprint
from features.store import fingerprint as fingerprint_of

MOST_OPEN = 16
_MAKE_ALIKE = f"extract all shards in the same way ({EXTRACT} --shards), or move it elsewhere"


class StoreEntry(NamedTuple):
    """One store of a set."""

    name: str
    """Of its file, without the suffix .h5."""
    rows: int
    bytes: int
    """Size of the file."""
    crc: int | None = None
    """`FeatureStore.crc`: without compression, as many other pictures take as many bytes. None if
    it was not recorded when the store was counted."""


Find = Callable[[np.ndarray], np.ndarray]
"""Returns the row of each image id, int64 [n] each; -1 for an id that it does not know."""


def stores_in(folder: Path) -> list[Path]:
    """Return the stores in a local folder, in the order in which a set reads them.

    Raises:
        UserError: the folder is an address or is missing, or holds no store.
    """
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(folder)):  # Path drops one slash of s3://
        raise UserError(
            f"expected a folder of this machine with the stores of shards, found {folder}; they "
            "are read at random, again in each epoch, so copy them to a disk here first, for "
            "example with rclone copy or aws s3 sync"
        )
    if not folder.is_dir():
        raise UserError(
            f"{folder}: there is no such folder; expected the folder that {EXTRACT} --shards wrote "
            "to"
        )
    paths = sorted(folder.glob("*.h5"))
    if not paths:
        raise UserError(
            f"{folder}: expected the stores of shards (SHARD.h5), found none; create them with "
            f"{EXTRACT} --shards PATTERN --out {folder}"
        )
    return paths


def entry_of(store: FeatureStore) -> StoreEntry:
    """Return the name and the size of a store, and the CRC-32 of what it holds."""
    return StoreEntry(store.path.stem, len(store), store.path.stat().st_size, store.crc())


def _opened(path: Path) -> FeatureStore:
    if not path.exists():
        raise UserError(
            f"{path} is not there any more; bring it back, or make it again with {EXTRACT} "
            f"--shards, or leave it out with {PREPARE} --dataset shards"
        )
    return FeatureStore(path)


class StoreSet:
    """The stores in a folder, open for reading as one store; see `FeatureStore`.

    It can be pickled, forked and shared between threads.

    Args:
        folder: the folder of the stores.
        shards: its stores, as they were counted before; by default all that are in it, each of
            which is then opened once.
        description: the description that all of them must have; by default that of the first.
        find: looks up the rows of images; by default the ids of all shards are searched.

    Attributes:
        path: the folder.
        shards: its stores.
        first_S: int64 [S], the row of the set that is the first one of each shard.
        description: everything the features depend on; see `features.backbones`.
        fingerprint: SHA-256 of the description.
        row_format: the description, the views and the encoding of the rows.

    Raises:
        UserError: there is no store, or the stores have different features, views or numbers of
            rows than expected.
    """

    def __init__(
        self,
        folder: Path,
        shards: Sequence[StoreEntry] | None = None,
        description: Mapping[str, Any] | None = None,
        find: Find | None = None,
    ) -> None:
        self.path = folder
        self._find = find or self._search
        self._open: OrderedDict[int, FeatureStore] = OrderedDict()
        self._lock = threading.Lock()
        if shards is not None:
            first = _opened(folder / f"{shards[0].name}.h5")
            self.shards = tuple(shards)
        else:
            paths = stores_in(folder)
            first = FeatureStore(paths[0])
        self.description = first.description if description is None else dict(description)
        self.fingerprint = fingerprint_of(self.description)
        self.row_format = first.row_format
        if shards is None:
            stores = map(self._checked, paths)
            self.shards = tuple(entry_of(store) for store in stores)
        rows_S = np.array([shard.rows for shard in self.shards], np.int64)
        self.first_S = rows_S.cumsum() - rows_S
        self._length = int(rows_S.sum())

    def _checked(self, path: Path) -> FeatureStore:
        """Open a store and check that it has the features of the set."""
        store = _opened(path)
        if store.fingerprint != self.fingerprint:
            raise UserError(
                f"{path} holds other features than the set of its folder: "
                f"{differences(self.description, store.description)}; {_MAKE_ALIKE}"
            )
        views, wanted = store.row_format.views, self.row_format.views
        if views != wanted:
            raise UserError(
                f"{path} holds the views {', '.join(views)}, the first store of its folder "
                f"{', '.join(wanted)}; {_MAKE_ALIKE}"
            )
        return store

    def store(self, number: int) -> FeatureStore:
        """Return the store of a shard, opened if it is not open.

        Raises:
            AccessError: it cannot be read now.
            UserError: it is damaged, is missing, or has changed since its rows were counted.
        """
        with self._lock:
            found = self._open.get(number)
            if found is None:
                shard = self.shards[number]
                path = self.path / f"{shard.name}.h5"
                found = self._checked(path)
                entry = entry_of(found)
                if shard.crc is None:
                    entry = entry._replace(crc=None)
                if entry != shard:
                    raise UserError(f"{path} has changed since {PREPARE} read it; run it again")
                self._open[number] = found
                if len(self._open) > MOST_OPEN:
                    self._open.popitem(last=False)  # closed when nobody reads it any more
            self._open.move_to_end(number)
            return found

    def __len__(self) -> int:
        return self._length

    @property
    def image_ids(self) -> "ByRow":
        """The image id of each row, int64, read from the shards when it is indexed."""
        return ByRow(self, lambda store: store.image_ids, np.dtype(np.int64))

    @property
    def status(self) -> "ByRow":
        """Whether each row is `STORED` or `FAILED`, uint8, read when it is indexed."""
        return ByRow(self, lambda store: store.status, np.dtype(np.uint8))

    @property
    def regions(self) -> "ByRow | None":
        """The number of regions of each image, int64; None if it does not vary."""
        if not self.row_format.varies:
            return None

        def regions(store: FeatureStore) -> np.ndarray:
            assert store.regions is not None  # its fingerprint is that of the set
            return store.regions

        return ByRow(self, regions, np.dtype(np.int64))

    def stored_rows(self) -> Iterator[np.ndarray]:
        """Yield the rows of stored images, ascending, those of one shard at a time."""
        for number, first in enumerate(self.first_S.tolist()):
            yield first + np.flatnonzero(self.store(number).status == STORED)

    def failures(self) -> dict[int, str]:
        """Return the reason of each failed image, by image id; this opens every store once."""
        found: dict[int, str] = {}
        for number in range(len(self.shards)):
            found |= self.store(number).failures()
        return found

    def rows(self, image_ids: Sequence[int]) -> np.ndarray:
        """Return the rows, int64 [n], of images.

        Raises:
            UserError: some images are not in the set, or failed.
        """
        wanted = np.asarray(image_ids, dtype=np.int64)
        rows = self._find(wanted)
        absent = wanted[rows < 0]
        if len(absent):
            raise UserError(
                f"{self.path}: {len(absent)} images are not in the stores: {first_few(absent)}; "
                f"run {EXTRACT} --shards again, then {PREPARE}"
            )
        failed = wanted[self.status[rows] != STORED]
        if len(failed):
            raise UserError(f"{self.path}: {len(failed)} images failed: {first_few(failed)}")
        return rows

    def grid(self, rows: Rows, views: Rows | None = None, regions: int | None = None) -> np.ndarray:
        """Return the grid features of `rows` [n] as float32; see `FeatureStore.grid`."""
        count = self.row_format.regions if regions is None else regions
        out = np.empty((len(rows), count, self.row_format.channels), np.float32)
        for store, places, inside, of_view in self._by_shard(rows, views):
            out[places] = store.grid(inside, of_view, regions)
        return out

    def pooled(self, rows: Rows, views: Rows | None = None) -> np.ndarray:
        """Return the pooled features as float32 [n, channels]; see `grid`."""
        out = np.empty((len(rows), self.row_format.channels), np.float32)
        for store, places, inside, of_view in self._by_shard(rows, views):
            out[places] = store.pooled(inside, of_view)
        return out

    def check(self, row: int) -> str:
        """Return what is wrong with a stored row, or an empty string; see `FeatureStore.check`."""
        ((store, _, inside, _),) = self._by_shard([row], None)
        return store.check(int(inside[0]))

    def expect(self, wanted: str, what: str, description: Mapping[str, Any] | None = None) -> None:
        """Raise UserError unless the fingerprint is `wanted`; see `FeatureStore.expect`."""
        expect_fingerprint(self, wanted, what, description)

    def _by_shard(
        self, rows: Rows, views: Rows | None
    ) -> Iterator[tuple[FeatureStore, np.ndarray, np.ndarray, np.ndarray | None]]:
        """Yield each shard's store, and the places in `rows`, rows in it and views of its rows."""
        wanted = np.asarray(rows, np.int64)
        of_view = None if views is None else np.asarray(views)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"rows {wanted.min()} to {wanted.max()} of {len(self)} in {self.path}")
        shard = np.searchsorted(self.first_S, wanted, side="right") - 1
        for number in np.unique(shard).tolist():
            places = np.flatnonzero(shard == number)
            inside = wanted[places] - self.first_S[number]
            yield self.store(number), places, inside, None if of_view is None else of_view[places]

    def _search(self, wanted: np.ndarray) -> np.ndarray:
        """Look up images in the ids of all shards, one after the other."""
        rows = np.full(len(wanted), -1, np.int64)
        for number, first in enumerate(self.first_S.tolist()):
            image_ids = self.store(number).image_ids
            order = np.argsort(image_ids)
            places = np.searchsorted(image_ids, wanted, sorter=order)
            inside = order[np.minimum(places, len(order) - 1)]
            here = image_ids[inside] == wanted
            rows[here] = first + inside[here]
        return rows

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_open", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open, self._lock = OrderedDict(), threading.Lock()


class ByRow:
    """A number of each row of a set, which is read from the shards when it is indexed."""

    def __init__(
        self, stores: StoreSet, read: Callable[[FeatureStore], np.ndarray], dtype: np.dtype
    ) -> None:
        self._stores = stores
        self._read = read
        self._dtype = dtype

    def __len__(self) -> int:
        return len(self._stores)

    def __getitem__(self, rows: Rows) -> np.ndarray:
        out = np.empty(len(rows), self._dtype)
        for store, places, inside, _ in self._stores._by_shard(rows, None):
            out[places] = self._read(store)[inside]
        return out


Store = FeatureStore | StoreSet
"""Either kind of store, as trainings, captioners and searches read it."""
