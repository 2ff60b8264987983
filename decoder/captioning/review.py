"""A table of the alternative texts of pages, in which a person can correct them.

Each picture of a page has a row. A text that differs from the column `written` was corrected: it
replaces the text at its place, and at every other place of the same picture whose row was left as
it was.
"""

import csv
import io
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from decoder.captioning.spreadsheets import read_table
from features.errors import UserError
from features.files import write_atomically

CORRECTED = "corrected"
_LOST = f"{CORRECTED}; its place is no longer on the page"


class Place(NamedTuple):
    """Where a picture is on a page."""

    line: int
    picture: str
    """How the table names it."""
    shares: bool
    """Whether its name says what it shows, so that its places may share a text."""


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

    @property
    def lost(self) -> bool:
        """Whether an earlier run did not find the place of a corrected text."""
        return self.note == _LOST


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
        self._on_page: dict[str, list[Row]] = defaultdict(list)
        self._edited: dict[str, list[Row]] = defaultdict(list)
        self._everywhere: dict[str, Row] = {}
        self._generated: dict[tuple[str, str], Row] = {}
        self._lost: list[Row] = []
        by_picture: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows:
            self._on_page[row.page].append(row)
            by_picture[row.picture].append(row)
            if row.edited:
                self._edited[row.picture].append(row)
            if not row.corrected and row.key:
                self._generated[row.picture, row.key] = row
        for picture, rows in by_picture.items():
            placed = [row for row in rows if not row.lost] or rows
            agreed = self._edited.get(picture) or placed
            if all(row.corrected and row.text == agreed[0].text for row in agreed):
                self._everywhere[picture] = agreed[0]

    def name(self, path: Path) -> str:
        """Return how the table names a file: relative to its own folder."""
        try:
            return Path(os.path.relpath(path.resolve(), self.path.parent.resolve())).as_posix()
        except ValueError:  # another drive
            return path.resolve().as_posix()

    def corrections(self, page: str, places: Sequence[Place]) -> list[Row | None]:
        """Return for each place of a page the row with a person's text, None if there is none.

        Args:
            page: its name; each page is asked for once.
            places: all of the page, in their order.
        """
        rows: dict[tuple[str, bool], list[Row]] = defaultdict(list)
        for row in self._on_page.get(page, ()):
            rows[row.picture, row.lost].append(row)
        numbers: dict[str, list[int]] = defaultdict(list)
        for number, place in enumerate(places):
            numbers[place.picture].append(number)
        own: dict[int, Row] = {}
        for picture, of_picture in numbers.items():
            for lost in (False, True):
                free = [number for number in of_picture if number not in own]
                own |= _matched(rows[picture, lost], free, places)
        found = [self._correction(place, own.get(n)) for n, place in enumerate(places)]
        matched = {id(row) for row in own.values()}
        kept = {(row.picture, row.text) for row in found if row is not None}
        self._lost += [
            row._replace(note=_LOST, written=row.text)
            for row in self._on_page.get(page, ())
            if row.corrected and id(row) not in matched and (row.picture, row.text) not in kept
        ]
        return found

    def _correction(self, place: Place, row: Row | None) -> Row | None:
        """Return the row with a person's text for a place whose own row is `row`."""
        shared = self._everywhere.get(place.picture) if place.shares else None
        if row is None or not row.corrected:
            return shared
        # An edit changes the other places too that had the same text before.
        before = {edited.written for edited in self._edited.get(place.picture, ())}
        return shared if shared and not row.edited and row.text in before else row

    def generated(self, picture: str, key: str) -> Row | None:
        """Return a row with the text that the same captioner generated for the same picture."""
        return self._generated.get((picture, key))

    def write(self, rows: Iterable[Row], pages: set[str]) -> list[Row]:
        """Replace the table; rows of other pages and corrections without a place are kept.

        Args:
            rows: the new rows.
            pages: the pages that they come from, each of which was asked for its `corrections`.

        Returns:
            The corrections whose place is no longer on its page.
        """
        kept = [row for row in self.rows if row.page not in pages]
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(Row._fields)
        table.writerows([*rows, *self._lost, *kept])
        # Excel takes a table for UTF-8 only if it starts with a byte-order mark.
        write_atomically(self.path, text.getvalue().encode("utf-8-sig", "surrogateescape"))
        return self._lost


def _matched(rows: list[Row], numbers: list[int], places: Sequence[Place]) -> dict[int, Row]:
    """Return the rows of a picture by the places of a page, by number, that they belong to.

    Lines move when a page is edited, so the order counts where there are as many rows as places.
    Elsewhere rows belong to the places in their line.
    """
    rows = sorted(rows, key=_line)
    if len(rows) == len(numbers):
        return dict(zip(numbers, rows, strict=True))
    in_line: dict[int, tuple[list[int], list[Row]]] = defaultdict(lambda: ([], []))
    for number in numbers:
        in_line[places[number].line][0].append(number)
    for row in rows:
        in_line[_line(row)][1].append(row)
    matched: dict[int, Row] = {}
    for there, theirs in in_line.values():
        if len(there) == len(theirs):
            matched |= zip(there, theirs, strict=True)
    return matched


def _line(row: Row) -> int:
    return int(row.line) if row.line.isdecimal() else 0


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
