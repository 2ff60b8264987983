"""A table of the alternative texts of pages, in which a person can correct them.

Each picture of a page has a row. A text that differs from the column `written` was corrected: it
replaces the text at its place, and at every other place of the same picture whose row was left as
it was.
"""

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from decoder.captioning.spreadsheets import read_table
from features.errors import UserError
from features.files import write_atomically

CORRECTED = "corrected"


class Row(NamedTuple):
    """A row of the table; every value as it is written."""

    page: str
    """The page, relative to the folder of the table."""
    line: str
    picture: str
    """The file of the picture, relative to the folder of the table, or its address."""
    text: str
    """The alternative text; a person may change it."""
    unsure: str
    lang: str
    """The language of the text if it is not that of the page; a person may change it."""
    note: str
    """Why there is no text, or `CORRECTED`."""
    written: str
    """The text that was last written, to see whether a person changed it."""
    key: str
    """Hash of the picture and the captioner, to see whether it must be captioned again."""

    @property
    def edited(self) -> bool:
        """Whether a person changed the text since it was written."""
        return self.text != self.written

    @property
    def corrected(self) -> bool:
        """Whether the text is by a person."""
        return self.edited or self.note.startswith(CORRECTED)


class Review:
    """The table of an earlier run, if there is one.

    Args:
        path: the table.

    Raises:
        UserError: the file holds something else or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = _read(path) if path.exists() else []
        self._exact: dict[tuple[str, str, str], Row] = {}
        self._on_page: dict[tuple[str, str], Row] = {}
        by_picture: dict[str, list[Row]] = {}
        for row in sorted(self.rows, key=lambda row: row.edited):  # an edited row counts most
            self._exact[row.page, row.line, row.picture] = row
            self._on_page[row.page, row.picture] = row
            by_picture.setdefault(row.picture, []).append(row)
        self._everywhere: dict[str, Row] = {}
        self._generated: dict[tuple[str, str], Row] = {}
        for picture, rows in by_picture.items():
            edited = [row for row in rows if row.edited]
            agreed = edited or [row for row in rows if row.corrected]
            if len({row.text for row in agreed}) == 1 and (edited or len(agreed) == len(rows)):
                self._everywhere[picture] = agreed[0]
            for row in rows:
                if not row.corrected and row.key:
                    self._generated[picture, row.key] = row

    def name(self, path: Path) -> str:
        """Return how the table names a file: relative to its own folder."""
        try:
            return Path(os.path.relpath(path.resolve(), self.path.parent.resolve())).as_posix()
        except ValueError:  # another drive
            return path.resolve().as_posix()

    def correction(self, page: str, line: int, picture: str) -> Row | None:
        """Return the row with a person's text for a place, None if there is none."""
        row = self._exact.get((page, str(line), picture)) or self._on_page.get((page, picture))
        if row is not None and row.edited:
            return row
        if picture in self._everywhere:
            return self._everywhere[picture]
        return row if row is not None and row.corrected else None

    def generated(self, picture: str, key: str) -> Row | None:
        """Return a row with the text that the same captioner generated for the same picture."""
        return self._generated.get((picture, key))

    def write(self, rows: Iterable[Row], pages: set[str]) -> list[Row]:
        """Replace the table; rows of other pages and corrections without a place are kept.

        Args:
            rows: the new rows.
            pages: the pages that they come from.

        Returns:
            The corrections whose picture is no longer on its page.
        """
        rows = list(rows)
        places = {(row.page, row.picture) for row in rows}
        kept = [row for row in self.rows if row.page not in pages]
        lost = [
            row
            for row in self.rows
            if row.page in pages and row.corrected and (row.page, row.picture) not in places
        ]
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(Row._fields)
        table.writerows([*rows, *lost, *kept])
        # Excel takes a table for UTF-8 only if it starts with a byte-order mark.
        write_atomically(self.path, text.getvalue().encode("utf-8-sig", "surrogateescape"))
        return lost


def _read(path: Path) -> list[Row]:
    """Read a table, also as spreadsheet programs save it."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    names, rows = read_table(path, content, Row._fields)
    if missing := [name for name in Row._fields if name not in names]:
        raise UserError(
            f"{path}: expected the columns {', '.join(Row._fields)}, found no "
            f"{', '.join(missing)}; choose another file for --review"
        )
    return [Row(*(values[name].strip() for name in Row._fields)) for values in rows]
