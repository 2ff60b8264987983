"""The caption table of pictures in shards: an SQLite database that is read a few rows at a time.

`WORK/captions.db` takes the place of captions.json where the features are a folder of stores, one
for each shard (see `features.store_set`). It is read through the interface of `CaptionTable`, and
nothing of it but the number of images in each shard is kept in memory.

    info    name, value   in JSON: format, dataset, sources, stores (their folder), description (of
                          the features), and of each split its digest, captions and left_out
    shards  number, name, rows, bytes, crc, train, val, test
                          each store, its size, a CRC-32 of what it holds (the first databases
                          lack it), and the number of its images in each split
    train, val, test      place, id, row, key, file_name, captions
                          the images of a split in the order of the stores, from place 0; row counts
                          through all stores; captions are in JSON, each a pair of its text and its
                          tokens joined by spaces

The database appears complete or not at all, and never changes (see `pipeline.prepare_shards`).
"""

import json
import sqlite3
import sys
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, overload
from urllib.parse import quote

import numpy as np

from features.commands import PREPARE
from features.errors import UserError
from features.files import reading
from features.store import FeatureStore
from features.store_set import Store, StoreEntry, StoreSet
from pipeline import captions
from pipeline.captions import SPLITS, Caption, CaptionTable, Image, Source
from pipeline.work import WorkFolder

FORMAT = 1
_AT_ONCE = 500  # rows that one query returns, within SQLite's limit of 999 parameters
_IMAGE = "id, file_name, captions"


def load(path: Path) -> CaptionTable:
    """Read the captions.json of a work directory, or open its captions.db.

    Raises:
        UserError: as `pipeline.captions.load` and `open_database`.
    """
    return open_database(path) if path.suffix == ".db" else captions.load(path)


def open_features(work: WorkFolder) -> Store:
    """Open the feature store of a work directory, or the set of stores of its shards.

    Raises:
        AccessError: a file cannot be read now.
        UserError: the features are missing or damaged, or have changed since they were prepared.
    """
    if work.features.suffix == ".db":
        return open_database(work.features).stores()
    return FeatureStore(work.features)


def encode_captions(of_image: Iterable[Caption]) -> str:
    """Return the captions of an image as the database holds them."""
    pairs = [(caption.text, " ".join(caption.tokens)) for caption in of_image]
    return json.dumps(pairs, ensure_ascii=False)


class _Connection:
    """A database open for reading. It can be pickled and shared between threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        with reading(path), path.open("rb") as file:
            file.read(1)
        try:
            # The file never changes, so it needs no locks, and some network disks have none.
            self._database = sqlite3.connect(
                f"file:{quote(str(path.resolve()))}?immutable=1", uri=True, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise self.damaged(error) from error

    def __call__(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query.

        Raises:
            UserError: the file is not the database that it should be.
        """
        try:
            with self._lock:
                return self._database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise self.damaged(error) from error

    def damaged(self, error: Exception | str) -> UserError:
        """Return the error of content that is not what it should be."""
        return UserError(
            f"{self.path} is not a caption database, or is damaged ({error}); create it again with "
            f"{PREPARE} --force"
        )

    def of_many(self, query: str, values: Sequence[int]) -> list[tuple[Any, ...]]:
        """Return the rows of a query that ends in IN, for as many values as there are."""
        parts = (values[i : i + _AT_ONCE] for i in range(0, len(values), _AT_ONCE))
        return [
            row for part in parts for row in self(f"{query} ({', '.join('?' * len(part))})", part)
        ]

    def __reduce__(self) -> tuple[Any, ...]:
        return _Connection, (self.path,)


class SplitImages(Sequence[Image]):
    """The images of a split, read from the database when they are indexed or iterated over.

    Images whose features could not be extracted, or that have no caption, are not among them.

    Attributes:
        name: of the split.
        count_S: int64 [S], the number of its images in each shard. The images of a shard are
            neighbours, and so are those of neighbouring shards.
        digest: SHA-256 of the images, as `decoder.runs.folder.digest` computes it.
        captions: number of their captions.
        left_out: number of images of the split whose features could not be extracted.
    """

    def __init__(
        self, read: _Connection, name: str, count_S: np.ndarray, about: Mapping[str, Any], own: str
    ) -> None:
        self.name = name
        self.count_S = count_S
        self.digest = str(about["digest"])
        self.captions = int(about["captions"])
        self.left_out = int(about["left_out"])
        self._read = read
        self._source = own
        self._length = int(count_S.sum())

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> list[Image]: ...
    def __getitem__(self, index: int | slice) -> Image | list[Image]:
        """Return an image, or those of a slice."""
        places = range(len(self))[index]
        return self.at([places])[0] if isinstance(places, int) else self.at(places)

    def at(self, indices: Sequence[int]) -> list[Image]:
        """Return some images; an index may occur twice."""
        query = f"SELECT place, {_IMAGE} FROM {self.name} WHERE place IN"
        distinct = list(dict.fromkeys(map(int, indices)))
        found = {
            place: self._image(*entry) for place, *entry in self._read.of_many(query, distinct)
        }
        if len(found) < len(distinct):
            raise self._read.damaged(f"{self.name} has not {len(self)} images")
        return [found[int(index)] for index in indices]

    def __iter__(self) -> Iterator[Image]:
        query = f"SELECT {_IMAGE} FROM {self.name} WHERE place >= ? ORDER BY place LIMIT {_AT_ONCE}"
        for start in range(0, len(self), _AT_ONCE):
            entries = self._read(query, (start,))
            if len(entries) != min(_AT_ONCE, len(self) - start):
                raise self._read.damaged(f"{self.name} has not {len(self)} images")
            for entry in entries:
                yield self._image(*entry)

    def with_ids(self, image_ids: Collection[int]) -> list[Image]:
        """Return those of the images that have one of these ids, in no order."""
        query = f"SELECT {_IMAGE} FROM {self.name} WHERE id IN"
        return [self._image(*entry) for entry in self._read.of_many(query, list(image_ids))]

    def file_names(self) -> Iterator[tuple[int, str]]:
        """Yield the id and the file name of each image, without reading its captions."""
        query = f"SELECT id, file_name FROM {self.name} WHERE place >= ? AND place < ?"
        for start in range(0, len(self), _AT_ONCE):
            for image_id, file_name in self._read(query, (start, start + _AT_ONCE)):
                if not (captions.is_id(image_id) and isinstance(file_name, str)):
                    raise self._read.damaged(f"the entry of image {image_id!r:.80}")
                yield image_id, file_name

    def _image(self, image_id: int, file_name: str, texts: str) -> Image:
        try:
            pairs = [(str(text), words.split(" ")) for text, words in json.loads(texts)]
            of_image = tuple(Caption(text, tuple(map(sys.intern, words))) for text, words in pairs)
        except (AttributeError, RecursionError, TypeError, ValueError) as error:
            raise self._read.damaged(f"captions of image {image_id}: {error}") from error
        if not (captions.is_id(image_id) and isinstance(file_name, str) and of_image):
            raise self._read.damaged(f"the entry of image {image_id!r:.80}")
        return Image(image_id, file_name, self.name, of_image, self._source)

    def rows_of(self, indices: np.ndarray) -> np.ndarray:
        """Return the rows of images in the set of stores, int64 [n]."""
        query = f"SELECT place, row FROM {self.name} WHERE place IN"
        rows = dict(self._read.of_many(query, np.unique(indices).tolist()))
        try:
            return np.array([rows[index] for index in indices.tolist()], np.int64)
        except (KeyError, TypeError, ValueError) as error:
            raise self._read.damaged(f"the row of an image: {error!r}") from error

    @property
    def rows(self) -> "Rows":
        """The row of each image, read when it is indexed."""
        return Rows(self)


class Rows:
    """The row of each image of a split in the set of stores, read when it is indexed."""

    def __init__(self, images: SplitImages) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return self._images.rows_of(indices)


class AllImages(Sequence[Image]):
    """The images of all splits, one split after the other."""

    def __init__(self, splits: Sequence[SplitImages]) -> None:
        self._splits = splits

    def __len__(self) -> int:
        return sum(map(len, self._splits))

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> list[Image]: ...
    def __getitem__(self, index: int | slice) -> Image | list[Image]:
        """Return an image, or those of a slice."""
        indices = range(len(self))[index]
        return self._at([indices])[0] if isinstance(indices, int) else self._at(indices)

    def _at(self, indices: Sequence[int]) -> list[Image]:
        """Return some images, which are read split by split."""
        found: dict[int, Image] = {}
        first = 0
        for images in self._splits:
            here = [index for index in indices if first <= index < first + len(images)]
            of_split = images.at([index - first for index in here])
            found.update(zip(here, of_split, strict=True))
            first += len(images)
        return [found[index] for index in indices]

    def __iter__(self) -> Iterator[Image]:
        return chain.from_iterable(self._splits)

    def first_of(self, split: str) -> int:
        """Return the index of the first image of a split."""
        names = [images.name for images in self._splits]
        return sum(map(len, self._splits[: names.index(split)]))

    def rows_of(self, indices: np.ndarray) -> np.ndarray:
        """Return the rows of images in the set of stores, int64 [n]."""
        rows = np.empty(len(indices), np.int64)
        first = 0
        for images in self._splits:
            here = (indices >= first) & (indices < first + len(images))
            rows[here] = images.rows_of(indices[here] - first)
            first += len(images)
        return rows


@dataclass(frozen=True, kw_only=True)
class CaptionDatabase(CaptionTable):
    """The images of a database as a caption table, and the stores of their features."""

    path_of_database: Path
    folder: Path
    """Of the stores."""
    shards: tuple[StoreEntry, ...]
    description: Mapping[str, Any]
    """What the features depend on; see `features.backbones`."""
    splits: Mapping[str, SplitImages]
    read: _Connection

    def split(self, name: str) -> SplitImages:
        """Return the images of a split.

        Raises:
            UserError: the data set has no image in that split.
        """
        if not self.has_split(name):
            counts = {split: len(images) for split, images in self.splits.items()}
            raise captions.no_such_split(self.dataset, name, counts)
        return self.splits[name]

    def has_split(self, name: str) -> bool:
        """Whether the data set has an image in a split."""
        return len(self.splits.get(name, ())) > 0

    def with_ids(self, image_ids: Collection[int]) -> list[Image]:
        """Return the images that have one of these ids."""
        return [
            image for of_split in self.splits.values() for image in of_split.with_ids(image_ids)
        ]

    def file_names(self) -> Iterator[tuple[int, str]]:
        """Yield the id and the file name of every image."""
        return chain.from_iterable(of_split.file_names() for of_split in self.splits.values())

    def path(self, image: Image) -> Path:
        """Return where the picture of `image` is, if its shard is unpacked beside its store."""
        return self.root / captions.check_file_name(image.file_name)

    def stores(self) -> StoreSet:
        """Open the stores of the images.

        Raises:
            UserError: a store is missing, or has changed since the database was made.
        """
        return StoreSet(self.folder, self.shards, self.description, self.find_rows)

    def find_rows(self, image_ids: np.ndarray) -> np.ndarray:
        """Return the row of each image in the set of stores, int64 [n]; -1 for unknown ids."""
        ids = image_ids.tolist()
        rows: dict[int, int] = {}
        for split in SPLITS:
            rows |= dict(self.read.of_many(f"SELECT id, row FROM {split} WHERE id IN", ids))
        return np.array([rows.get(image_id, -1) for image_id in ids], np.int64)


def open_database(path: Path) -> CaptionDatabase:
    """Open a captions.db for reading.

    Raises:
        AccessError: it cannot be read now.
        UserError: it is missing, damaged, or of a version that this one does not read.
    """
    try:
        read = _Connection(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there; create it with {PREPARE}") from error
    try:
        info = {name: json.loads(value) for name, value in read("SELECT name, value FROM info")}
        if info["format"] != FORMAT:
            raise UserError(
                f"{path} has format {info['format']}, this version reads format {FORMAT}; create "
                f"it again with {PREPARE} --force"
            )
        has_crc = read("SELECT * FROM pragma_table_info('shards') WHERE name = 'crc'")
        columns = ", ".join(("name", "rows", "bytes", "crc" if has_crc else "NULL", *SPLITS))
        entries = read(f"SELECT {columns} FROM shards ORDER BY number")
        counts = np.array([counts for _, _, _, _, *counts in entries], np.int64).reshape(-1, 3)
        if any(Path(name).name != name for name, *_ in entries) or counts.min(initial=0) < 0:
            raise ValueError("the table of shards")
        if not entries:
            raise ValueError("it has no shards")
        source = Source(**info["sources"][0])
        splits = {
            split: SplitImages(read, split, counts[:, number], info[split], source.name)
            for number, split in enumerate(SPLITS)
        }
        folder = path.parent / info["stores"]
        return CaptionDatabase(
            dataset=info["dataset"],
            root=folder,
            images=AllImages(list(splits.values())),
            sources=(source,),
            path_of_database=path,
            folder=folder,
            shards=tuple(StoreEntry(*entry[:4]) for entry in entries),
            description=info["description"],
            splits=splits,
            read=read,
        )
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise read.damaged(error) from error
