"""Captions of thousands of pictures as one CSV or JSONL file that an interruption cannot spoil.

A row is appended for each picture as soon as its caption is written, so a killed run loses at most
the batch it was at. The next one cuts off half a last line, drops the rows of pictures that have
changed since, and goes on with those that have no row. No caption stays in memory.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from features.errors import UserError
from features.files import make_folder, write_atomically
from pipeline.text import CONTROL

SUFFIXES = (".csv", ".jsonl")
COLUMNS = ("path", "caption", "unsure", "confidence", "bytes", "modified", "writer")
# A name that is not UTF-8 must come back as the same bytes: raw in CSV, as an escape in JSON.
_ERRORS = {".csv": "surrogateescape", ".jsonl": "backslashreplace"}


class State(NamedTuple):
    """What tells whether a picture is still the one that was captioned."""

    bytes: int
    modified: int
    """Nanoseconds since 1970."""


def state_of(picture: Path) -> State | None:
    """Return the state of a file, None if it cannot be looked at."""
    try:
        status = picture.stat()
    except OSError:
        return None
    return State(status.st_size, status.st_mtime_ns)


class Listing:
    """A file of captions that is being written; a context manager.

    Args:
        path: whose suffix is one of `SUFFIXES`.
        writer: tells apart what the captions are written with: rows by another one do not mix.
        anew: begin an empty file.

    Raises:
        UserError: the file has something else in it, or captions by another writer, or cannot be
            read or written.
    """

    def __init__(self, path: Path, writer: str, anew: bool = False) -> None:
        self.path = path
        self._writer = writer
        self._csv = path.suffix.lower() == ".csv"
        self._done: dict[str, State] = {}
        if not anew and path.exists():
            self._recover()
        else:
            write_atomically(path, _csv_line(COLUMNS) if self._csv else "")

    def __enter__(self) -> "Listing":
        make_folder(self.path.parent)
        errors = _ERRORS[self.path.suffix.lower()]
        self._file = self.path.open("a", encoding="utf-8", errors=errors, newline="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def has(self, picture: Path) -> bool:
        """Whether the picture has a row, and has not changed since."""
        done = self._done.get(str(picture))
        return done is not None and done == state_of(picture)

    def add(self, rows: Iterable[tuple[Path, State | None, dict[str, Any]]]) -> None:
        """Append rows: the picture, its state before it was read, and what else is to be told."""
        lines = []
        for picture, state, values in rows:
            kept = state or State(-1, -1)
            row = {"path": str(picture), **values, **kept._asdict(), "writer": self._writer}
            lines.append(self._line(row))
        self._file.write("".join(lines))
        self._file.flush()

    def _line(self, row: dict[str, Any]) -> str:
        if not self._csv:
            return f"{json.dumps(row, ensure_ascii=False)}\n"
        return _csv_line(_as_cell(row.get(name)) for name in COLUMNS)

    def _recover(self) -> None:
        """Learn which pictures are done; leave out half a line, and rows that do not hold any more.

        The file is written anew only if something is left out.
        """
        try:
            with self.path.open("rb") as file:
                lines = list(self._whole_lines(file))
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}") from error
        header = [_csv_line(COLUMNS)] if self._csv else []
        if self._csv and lines[:1] != header:
            if lines:
                raise self._strange(1)
            lines = header
        kept = list(header)
        latest = {}
        for number, line in enumerate(lines[len(header) :], len(header) + 1):
            path, state, writer = self._parsed(line, number)
            if writer != self._writer:
                raise UserError(
                    f"{self.path}, line {number}: written by another captioner or with other "
                    "options, which would not be comparable; choose another --out, or replace all "
                    "of it with --force"
                )
            latest[path] = (state, line)
        for path, (state, line) in latest.items():
            if state_of(Path(path)) in (state, None):  # a picture that is gone keeps its row
                self._done[path] = state
                kept.append(line)
        text = "".join(kept).encode("utf-8", _ERRORS[".csv"])
        if text != self.path.read_bytes():
            write_atomically(self.path, text)

    def _whole_lines(self, file: io.BufferedReader) -> Iterator[str]:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return  # what a killed run was writing
            try:
                yield line.decode("utf-8", _ERRORS[".csv"])
            except UnicodeDecodeError as error:
                raise self._strange(number) from error

    def _parsed(self, line: str, number: int) -> tuple[str, State, str]:
        try:
            if self._csv:
                row = dict(zip(COLUMNS, next(csv.reader([line], strict=True)), strict=True))
            else:
                row = json.loads(line)
            state = State(int(row["bytes"]), int(row["modified"]))
            if "\0" in (path := str(row["path"])):
                raise ValueError("a name that no file can have")
            return path, state, str(row["writer"])
        except (
            csv.Error,
            KeyError,
            OverflowError,
            RecursionError,
            StopIteration,
            TypeError,
            ValueError,
        ) as error:
            raise self._strange(number) from error

    def _strange(self, number: int) -> UserError:
        return UserError(
            f"{self.path}, line {number}: not a caption of ours; choose another --out, or replace "
            "the file with --force"
        )


def check_names(pictures: Iterable[Path], what: str) -> None:
    """Raise UserError if a name has a line break or the like, which would break lines of `what`."""
    strange = [repr(str(path)) for path in pictures if CONTROL.search(str(path))]
    if strange:
        few = ", ".join(strange[:5])
        raise UserError(
            f"{len(strange)} names have a line break, a tab or the like, which would break the "
            f"lines of {what}: {few}; print JSON with --json, or write it with --out FILE.jsonl"
        )


def _as_cell(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _csv_line(cells: Iterable[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
