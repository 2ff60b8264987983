"""Counts of words, exact, in memory that does not grow with the text."""

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator

from features.errors import UserError

# Distinct words that are counted in memory before they are added to those on the disk.
_IN_MEMORY = 200_000


class WordCounts:
    """The number of times that each word occurs; rare words are kept on the disk."""

    def __init__(self) -> None:
        self._recent: Counter[str] = Counter()
        # A temporary database: SQLite deletes its file when it is closed or its process ends.
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute(
            "CREATE TABLE words (word TEXT PRIMARY KEY, count INTEGER) WITHOUT ROWID"
        )

    def add(self, words: Iterable[str]) -> None:
        """Count words."""
        self._recent.update(words)
        if len(self._recent) > _IN_MEMORY:
            self._flush()

    def _flush(self) -> None:
        """Add the counts in memory to those on the disk; UserError if it is full."""
        try:
            self._write()
        except sqlite3.Error as error:
            raise UserError(
                f"cannot write a temporary file of word counts: {error}; free some space on the "
                "disk of TMPDIR, and try again"
            ) from error

    def _write(self) -> None:
        self._database.execute("BEGIN")
        self._database.executemany(
            "INSERT INTO words VALUES (?, ?) "
            "ON CONFLICT (word) DO UPDATE SET count = count + excluded.count",
            sorted(self._recent.items()),  # in the order of the table, which is faster
        )
        self._database.execute("COMMIT")
        self._recent.clear()

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """Yield each word with its count, in the order of their code points."""
        self._flush()
        yield from self._database.execute("SELECT word, count FROM words ORDER BY word")
