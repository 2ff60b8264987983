"""What is kept of the pictures of albums between two searches, in a SQLite database.

    CACHE/KEY.sqlite       a row for each picture: path, size, time, hash, and its vector or the
                           reason why it cannot be read
    CACHE/ALBUM-KEY.lock   held by the process that is indexing the album
    CACHE/ALBUM-KEY.safetensors, CACHE/ALBUM-KEY.usearch
                           of large albums: all vectors, and which of them are neighbours

KEY stands for what computed the vectors. CACHE is in the user's cache folder, so that nothing is
ever written to an album; it may be deleted at any time. SQLite lets other processes read meanwhile,
and after a kill or a power cut everything up to the last commit is there.
"""

import hashlib
import logging
import os
import sqlite3
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from features.folders import real_path
from features.locks import locked

log = logging.getLogger(__name__)

# Seconds of work that a kill can lose, and that a process waits for another one's commit.
_COMMIT_SECONDS, _WAIT_SECONDS = 5.0, 60.0
# A row has 1.2 kB. In pages of 4 kB, SQLite would give each an overflow page of its own.
_TABLE = """
PRAGMA page_size = 8192;
CREATE TABLE IF NOT EXISTS pictures (
    path BLOB PRIMARY KEY, size INTEGER NOT NULL, modified INTEGER NOT NULL,
    content BLOB NOT NULL, vector BLOB, error TEXT
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS pictures_size ON pictures (size);
"""


class Row(NamedTuple):
    """What is known of a picture."""

    size: int
    """Of the file, in bytes."""
    modified: int
    """Modification time of the file, in nanoseconds."""
    content: bytes
    """SHA-256 of the file."""
    vector: bytes | None
    """Its vector, float16; None if the picture cannot be read."""
    error: str | None
    """Why it cannot be read."""


def user_cache() -> Path:
    """Return the folder for albums in the user's cache folder; it need not exist.

    Raises:
        RuntimeError: this user has no home.
    """
    if (chosen := os.environ.get("XDG_CACHE_HOME", "")) and os.path.isabs(chosen):  # noqa: PTH117
        base = Path(chosen)
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path.home() / ".cache"
    return base / "caption-pipeline" / "albums"


class State(NamedTuple):
    """What is known of a picture, without its vector."""

    size: int
    """Of the file, in bytes."""
    modified: int
    """Modification time of the file, in nanoseconds."""
    vector_bytes: int | None
    """Size of its vector; None if the picture cannot be read."""
    error: str | None
    """Why it cannot be read."""


class AlbumCache:
    """The rows of one album, by real path; use it as a context manager.

    If the folder of the cache cannot be written to, there is a warning and nothing is kept.

    Args:
        album: the folder of the pictures.
        key: what computed the vectors, as part of a file name.
        folder: where the cache is kept; by default `user_cache()`.
    """

    def __init__(self, album: Path, key: str, folder: Path | None = None) -> None:
        self._album = real_path(album)
        self._key = key
        self._committed = time.monotonic()
        self._warned = False
        self._folder: Path | None = None
        self._database = sqlite3.connect(":memory:")
        try:
            chosen = folder or user_cache()
            chosen.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._database = _opened(chosen / f"{key}.sqlite")
            self._folder = chosen
        except (OSError, RuntimeError, sqlite3.Error) as error:
            self._warn(error)
            self._database.executescript(_TABLE)

    def __enter__(self) -> "AlbumCache":
        return self

    def __exit__(self, *_: object) -> None:
        self.commit()
        self._database.close()

    @contextmanager
    def indexing(self) -> Iterator[None]:
        """Let one process at a time index this album; another one waits, and its log says so."""
        file = self.file(".lock")
        if file is None:
            yield
            return
        busy = f"another process is indexing {self._album}; waiting for it"
        with ExitStack() as held:
            try:
                held.enter_context(locked(file, busy, wait=True))
            except OSError as error:
                self._warn(error)
            yield

    def states(self) -> dict[bytes, State]:
        """Return what is known of all pictures of the album, by real path."""
        found = self._select("path, size, modified, length(vector), error")
        return {path: State(*rest) for path, *rest in found}

    def vectors(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the real path and the vector of each picture of the album that has one."""
        found = self._select("path, vector")
        return ((path, vector) for path, vector in found if vector is not None)

    def _select(self, columns: str) -> sqlite3.Cursor:
        below = os.fsencode(os.path.join(self._album, ""))  # noqa: PTH118
        after = below[:-1] + bytes([below[-1] + 1])
        query = f"SELECT {columns} FROM pictures WHERE path >= ? AND path < ? ORDER BY path"
        return self._database.execute(query, (below, after))

    def file(self, suffix: str) -> Path | None:
        """Return the path of a file that belongs to this album alone; None if nothing is kept."""
        if self._folder is None:
            return None
        name = hashlib.sha256(os.fsencode(self._album)).hexdigest()[:16]
        return self._folder / f"{name}-{self._key}{suffix}"

    def same_size(self, size: int) -> list[Row]:
        """Return the rows of all files of a size, in any album, whether they still exist or not."""
        query = "SELECT * FROM pictures WHERE size = ?"
        return [Row(*rest) for _, *rest in self._database.execute(query, (size,))]

    def put(self, path: bytes, row: Row) -> None:
        """Keep a row; it is on the disk some seconds later, or after `commit`."""
        with self._warned_of_failure():
            self._database.execute(
                "INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, ?, ?, ?)", (path, *row)
            )
        if time.monotonic() - self._committed > _COMMIT_SECONDS:
            self.commit()

    def forget(self, paths: Iterable[bytes]) -> None:
        """Delete the rows of pictures that are gone."""
        with self._warned_of_failure():
            self._database.executemany(
                "DELETE FROM pictures WHERE path = ?", ((path,) for path in paths)
            )

    def commit(self) -> None:
        """Write to the disk what was put and forgotten."""
        with self._warned_of_failure():
            self._database.commit()
        self._committed = time.monotonic()

    @contextmanager
    def _warned_of_failure(self) -> Iterator[None]:
        """Where the block fails to write, such as on a full disk, warn once and go on without."""
        try:
            yield
        except sqlite3.Error as error:
            self._warn(error)
            with suppress(sqlite3.Error):
                self._database.rollback()

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            log.warning(
                "cannot keep the index of %s, so the next search computes it again: %s",
                self._album,
                error,
            )
        self._warned = True


def _opened(file: Path) -> sqlite3.Connection:
    """Open a database and make its table; one that is damaged is replaced by an empty one."""
    for attempt in range(2):
        database = sqlite3.connect(file, timeout=_WAIT_SECONDS)
        try:
            database.executescript(_TABLE)
            database.execute("SELECT * FROM pictures LIMIT 1").fetchall()
            return database
        except sqlite3.OperationalError:  # locked, read-only or a full disk
            database.close()
            raise
        except sqlite3.DatabaseError:
            database.close()
            if attempt:
                raise
            log.warning("%s is damaged; starting it again", file)
            file.unlink(missing_ok=True)
    raise AssertionError("unreachable")
