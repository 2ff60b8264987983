"""Captions of thousands of pictures in one CSV or JSONL file that survives interruptions.

A row is appended for each picture as soon as it is captioned, so a killed run loses at most one
batch. The next run drops an incomplete last line and the rows of pictures that have changed, and
captions the pictures that have no row. No caption stays in memory.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from decoder.captioning.files import check_names
from decoder.captioning.writer import CaptionWriter
from features.errors import UserError
from features.files import make_folder, write_atomically

COLUMNS = ("path", "caption", "unsure", "confidence", "bytes", "modified", "writer")
# A name that is not UTF-8 must be read back as the same bytes: raw in CSV, escaped in JSON.
_ERRORS = {".csv": "surrogateescape", ".jsonl": "backslashreplace"}


class State(NamedTuple):
    """Size and time of a picture, which show whether it has changed since it was captioned."""

    bytes: int
    modified: int
    """Nanoseconds since 1970."""


def state_of(picture: Path) -> State | None:
    """Return the state of a file, None if it cannot be read."""
    try:
        status = picture.stat()
    except OSError:
        return None
    return State(status.st_size, status.st_mtime_ns)


class Listing:
    """A file of captions that is being written; a context manager.

    Args:
        path: its suffix is .csv or .jsonl.
        writer: identity of the weights and options; a file holds the captions of one writer only.
        overwrite: start with an empty file.

    Raises:
        UserError: the file holds something else, or captions by another writer, or cannot be read
            or written.
    """

    def __init__(self, path: Path, writer: str, overwrite: bool = False) -> None:
        self.path = path
        self._writer = writer
        self._csv = path.suffix.lower() == ".csv"
        self._done: dict[str, State] = {}
        if path.exists() and not overwrite:
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
        """Whether the picture has a row and has not changed since."""
        done = self._done.get(str(picture))
        return done is not None and done == state_of(picture)

    def add(self, picture: Path, state: State | None, values: dict[str, Any]) -> None:
        """Append the row of a picture.

        Args:
            picture: its path.
            state: its state before it was captioned.
            values: its caption and the other columns.
        """
        kept = state or State(-1, -1)
        row = {"path": str(picture), **values, **kept._asdict(), "writer": self._writer}
        self._file.write(self._line(row))
        self._file.flush()

    def _line(self, row: dict[str, Any]) -> str:
        if not self._csv:
            return f"{json.dumps(row, ensure_ascii=False)}\n"
        return _csv_line(_as_cell(row.get(name)) for name in COLUMNS)

    def _recover(self) -> None:
        """Read which pictures are done; drop an incomplete line and outdated rows.

        The file is rewritten only if something is dropped.
        """
        try:
            with self.path.open("rb") as file:
                lines = list(self._complete_lines(file))
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}") from error
        header = [_csv_line(COLUMNS)] if self._csv else []
        if self._csv and lines[:1] != header:
            if lines:
                raise self._foreign(1)
            lines = header
        kept = list(header)
        latest = {}
        for number, line in enumerate(lines[len(header) :], len(header) + 1):
            path, state, writer = self._parsed(line, number)
            if writer != self._writer:
                raise UserError(
                    f"{self.path}, line {number}: written by another captioner or with other "
                    "options, so its captions would not be comparable; choose another --out, or "
                    "replace the file with --force"
                )
            latest[path] = (state, line)
        for path, (state, line) in latest.items():
            if state_of(Path(path)) in (state, None):  # a deleted picture keeps its row
                self._done[path] = state
                kept.append(line)
        text = "".join(kept).encode("utf-8", _ERRORS[".csv"])
        if text != self.path.read_bytes():
            write_atomically(self.path, text)

    def _complete_lines(self, file: io.BufferedReader) -> Iterator[str]:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return  # a killed run was writing this line
            try:
                yield line.decode("utf-8", _ERRORS[".csv"])
            except UnicodeDecodeError as error:
                raise self._foreign(number) from error

    def _parsed(self, line: str, number: int) -> tuple[str, State, str]:
        try:
            if self._csv:
                row = dict(zip(COLUMNS, next(csv.reader([line], strict=True)), strict=True))
            else:
                row = json.loads(line)
            state = State(int(row["bytes"]), int(row["modified"]))
            if "\0" in (path := str(row["path"])):
                raise ValueError("the path contains a null character")
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
            raise self._foreign(number) from error

    def _foreign(self, number: int) -> UserError:
        return UserError(
            f"{self.path}, line {number}: expected a caption written by this command; choose "
            "another --out, or replace the file with --force"
        )


def write_listing(writer: CaptionWriter, paths: Sequence[Path], out: Path, overwrite: bool) -> None:
    """Add the captions of the pictures that `out` does not hold yet.

    Raises:
        UserError: see `Listing`, `check_names` and `CaptionWriter.captions`.
    """
    if out.suffix.lower() == ".csv":
        check_names(paths, "a CSV file")
    states = {path: state_of(path) for path in paths}
    with Listing(out, writer.identity(), overwrite) as listing:
        missing = [path for path in paths if not listing.has(path)]
        done = len(paths) - len(missing)
        for path, captions in writer.captions(missing, done):
            listing.add(path, states[path], writer.as_json(captions))
    print(f"caption: {writer.written} captions added to {out}, {done} already there")


def _as_cell(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _csv_line(cells: Iterable[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
