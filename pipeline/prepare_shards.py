"""`pipeline.prepare --dataset shards`: the captions beside many stores become one database.

The files are read line by line and written row by row, so memory does not grow with the number of
pictures. `pipeline.caption_database` describes the database.
"""

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from features.commands import EXTRACT, PREPARE
from features.errors import UserError, first_few
from features.files import delete_temporaries, replacing
from features.progress import Progress
from features.shard_outputs import unfinished
from features.store import FeatureStore
from features.store_set import StoreSet, stores_in
from pipeline.caption_database import FORMAT, encode_captions
from pipeline.captions import SPLITS, Image, Source, described
from pipeline.cleaning import Cleaning
from pipeline.options import PrepareOptions
from pipeline.readers.records import hash_position
from pipeline.readers.shards import Line, captions_of, count_lines, read_shard
from pipeline.word_counts import WordCounts

# Sizes of val and test by default: a share of the pictures, and at most this number.
SHARE, MOST_HELD_OUT = 0.1, 5000
_AT_ONCE = 20_000  # pictures that are read before they are written


class Held(NamedTuple):
    """Shares of the pictures that are held out, from 0 to 1."""

    val: float
    test: float


class Prepared(NamedTuple):
    """What is known of the data set once its database is written."""

    counts: dict[str, dict[str, Any]]
    """Of each split, as the database records them; also "images" and "longer" captions."""
    words: WordCounts
    """Of the training captions."""
    remarks: list[str]


def listing_digest(root: Path) -> str:
    """Return a hash of the names, sizes and times of the stores and captions in a folder.

    Raises:
        UserError: the folder holds no stores, or a store has no captions.
    """
    digest = hashlib.sha256()
    for store in stores_in(root):
        for path in (store, captions_of(store)):
            status = path.stat()
            digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def held_out(options: PrepareOptions, pictures: int) -> Held:
    """Return the shares of val and test: as many of all pictures as the options say.

    Raises:
        UserError: they leave no picture for training.
    """
    most = min(SHARE * pictures, MOST_HELD_OUT)
    val, test = (most if size is None else size for size in (options.val, options.test))
    if val + test >= pictures:
        raise UserError(
            f"--val {val:g} and --test {test:g} leave none of the {pictures:,} pictures for train"
        )
    return Held(val / pictures, test / pictures)


def split_of(line: Line, held: Held, seed: int) -> str:
    """Return the split of a picture: as its line says, or by a hash of its key.

    As pictures are added, one may move from val or test to train, but in no other way.
    """
    if line.split is not None:
        return line.split
    position = hash_position(line.key, seed)
    if position < held.val:
        return "val"
    return "test" if position >= 1 - held.test else "train"


@contextmanager
def writing_database(options: PrepareOptions, path: Path) -> Iterator[Prepared]:
    """Read all shards in the root and write their captions to a database.

    It is put in place when the block ends; if the block fails, the old one stays.

    Raises:
        UserError: a file is damaged or not understood, stores differ, a picture occurs twice, no
            picture has a caption, or the disk is full.
    """
    assert options.root is not None
    stores = StoreSet(options.root)
    lines = sum(count_lines(captions_of(options.root / f"{s.name}.h5")) for s in stores.shards)
    held = held_out(options, lines)
    source = Source(options.name or options.dataset, options.dataset, options.terms)
    delete_temporaries(path)
    with _write_errors(path), replacing(path) as temporary:
        temporary.unlink(missing_ok=True)
        with closing(sqlite3.connect(temporary, isolation_level=None)) as database:
            # Whoever reads sees the complete file only, so it needs no journal.
            database.execute("PRAGMA journal_mode = OFF")
            database.execute("PRAGMA synchronous = OFF")
            database.execute("BEGIN")
            _create(database)
            writing = _Writing(database, held, options, source.name)
            with Progress("prepare", lines, "picture") as bar:
                for number, shard in enumerate(stores.shards):
                    counts = writing.add(stores.store(number), bar)
                    database.execute(
                        "INSERT INTO shards VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                        (number, *shard, *(counts[split] for split in SPLITS)),
                    )
            _check_unique(database, options.root)
            info = {
                "format": FORMAT,
                "dataset": options.dataset,
                "sources": [described(source)],
                "stores": _relative(options.root, path.parent),
                "description": stores.description,
                **writing.about(),
            }
            entries = [
                (name, json.dumps(value, ensure_ascii=False)) for name, value in info.items()
            ]
            database.executemany("INSERT INTO info VALUES (?, ?)", entries)
            database.execute("COMMIT")
        yield Prepared(writing.counts, writing.words, writing.remarks())


def undone(root: Path) -> list[str]:
    """Return a remark on the shards of a folder that were begun but have no store, if any."""
    names = unfinished(root, "pipeline.extract", ".h5")
    if not names:
        return []
    return [
        f"{len(names)} shards have no store yet, left out: {first_few(names)}; continue "
        f"{EXTRACT} --shards, which also says what is broken, then run {PREPARE} again"
    ]


class _Writing:
    """Writes the pictures of one shard after the other, and counts."""

    def __init__(
        self, database: sqlite3.Connection, held: Held, options: PrepareOptions, source: str
    ) -> None:
        self._database = database
        self._held = held
        self._options = options
        self._source = source
        self._cleaning = Cleaning()
        self._digests = {split: hashlib.sha256() for split in SPLITS}
        self.counts: dict[str, dict[str, Any]] = {
            split: dict.fromkeys(("images", "captions", "longer", "left_out"), 0)
            for split in SPLITS
        }
        self.words = WordCounts()
        self._row = self._failed = self._in_no_split = 0

    def add(self, store: FeatureStore, bar: Progress) -> Counter[str]:
        """Write the pictures of a store; return the number of its pictures in each split."""
        of_shard: Counter[str] = Counter()
        lines = read_shard(store)
        while some := list(islice(lines, _AT_ONCE)):
            entries: dict[str, list[tuple[Any, ...]]] = {split: [] for split in SPLITS}
            for line in some:
                split = split_of(line, self._held, self._options.seed)
                if split:
                    self._place(line, split, store.path.stem, entries[split])
                else:
                    self._in_no_split += 1
                self._row += 1
            for split, of_split in entries.items():
                self._database.executemany(
                    f"INSERT INTO {split} VALUES (?, ?, ?, ?, ?, ?)", of_split
                )
                of_shard[split] += len(of_split)
            bar.update(len(some))
        return of_shard

    def _place(self, line: Line, split: str, shard: str, entries: list[tuple[Any, ...]]) -> None:
        counts = self.counts[split]
        if line.failed:
            counts["left_out"] += 1
            self._failed += 1
            return
        name = f"{shard}/{line.file_name}"
        texts = self._cleaning.captions(name, line.texts)
        if not texts:
            return
        image = Image(line.id, name, split, texts)
        digest = self._digests[split]
        digest.update(("\n" if counts["images"] else "").encode() + repr(image).encode())
        entries.append(
            (counts["images"], line.id, self._row, line.key, name, encode_captions(texts))
        )
        counts["images"] += 1
        counts["captions"] += len(texts)
        counts["longer"] += sum(len(text.tokens) > self._options.max_length for text in texts)
        if split == "train":
            for text in texts:
                self.words.add(text.tokens)

    def about(self) -> dict[str, dict[str, Any]]:
        """Return what the database records of each split."""
        return {
            split: {
                "digest": self._digests[split].hexdigest(),
                **{name: counts[name] for name in ("captions", "left_out")},
            }
            for split, counts in self.counts.items()
        }

    def remarks(self) -> list[str]:
        """Return what was changed or left out, for the user."""
        remarks = list(self._cleaning.remarks())
        if self._in_no_split:
            remarks.insert(0, f"{self._in_no_split} images are in no split, left out")
        if self._failed:
            remarks.append(f"{self._failed} pictures could not be read, left out")
        return remarks


def _create(database: sqlite3.Connection) -> None:
    database.execute("CREATE TABLE info (name TEXT PRIMARY KEY, value TEXT)")
    database.execute(
        "CREATE TABLE shards (number INTEGER PRIMARY KEY, name TEXT, rows INTEGER, "
        f"bytes INTEGER, crc INTEGER, {', '.join(f'{split} INTEGER' for split in SPLITS)})"
    )
    for split in SPLITS:
        database.execute(
            f"CREATE TABLE {split} (place INTEGER PRIMARY KEY, id INTEGER, row INTEGER, key TEXT, "
            "file_name TEXT, captions TEXT)"
        )


def _check_unique(database: sqlite3.Connection, root: Path) -> None:
    """Make the indices of ids; refuse an id that occurs twice."""
    for split in SPLITS:  # an index of all rows at once is sorted on the disk
        database.execute(f"CREATE INDEX {split}_id ON {split} (id)")
    twice = [
        *(f"SELECT key FROM {split} GROUP BY id HAVING count(*) > 1" for split in SPLITS),
        *(
            f"SELECT key FROM {one} WHERE id IN (SELECT id FROM {other})"
            for one, other in (("val", "train"), ("test", "train"), ("test", "val"))
        ),
    ]
    keys = [key for query in twice for (key,) in database.execute(f"{query} LIMIT 5")]
    if keys:
        raise UserError(
            f"{root}: pictures with the keys {first_few(map(repr, keys))} have an id that occurs "
            "twice; extract the shards with --prefix-keys, or remove one of the shards that hold it"
        )


def _relative(folder: Path, work: Path) -> str:
    """Return the path of the stores; relative inside the work directory, so that it can move."""
    folder, work = folder.resolve(), work.resolve()
    return str(folder.relative_to(work) if folder.is_relative_to(work) else folder)


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """Turn the errors of writing the database into a UserError."""
    try:
        yield
    except sqlite3.Error as error:
        full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        advice = "; free some space and try again" if full else ""
        raise UserError(f"cannot write {path}: {error}{advice}") from error
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
