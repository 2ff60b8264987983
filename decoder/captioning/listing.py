"""Captions of thousands of pictures in one CSV or JSONL file that survives interruptions.

A row is appended for each picture as soon as it is captioned, so a killed run loses at most one
batch. The next run drops an incomplete last line and captions the pictures that have no row or
have changed. No caption stays in memory.

A row belongs to the picture itself: its path has no links and is relative to the folder of the
listing, so that both can be moved together. Rows of version 0.2 have paths as they were typed,
relative to a folder that is not known. They are kept as they are unless their picture is located.
"""

import codecs
import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

from decoder.captioning.files import check_names
from decoder.captioning.spreadsheets import exact, read_table
from decoder.captioning.writer import CaptionWriter
from features.content import NOTHING, EmptyPicture
from features.errors import UserError
from features.files import is_there, make_folder, write_atomically
from features.folders import real_path
from features.images import PictureError
from features.locks import locked

# Columns of version 0.2. The later ones stand at the end, so that its rows stay as they are: they
# are shorter than those of this version, which tells the two apart.
OLD_COLUMNS = ("path", "caption", "unsure", "confidence", "bytes", "modified", "writer")
COLUMNS = (*OLD_COLUMNS, "labels", "error")
# A name that is not UTF-8 must be read back as the same bytes. JSON holds it escaped instead.
_ERRORS = "surrogateescape"

# The time of a picture as a spreadsheet program may save it.
_ROUNDED = re.compile(rb'[,"]\d[.,]\d+E\+1\d[,"]')

# What a line that this project did not write may raise.
_MALFORMED: tuple[type[Exception], ...] = (AttributeError, LookupError, OverflowError, TypeError)
_MALFORMED += (RecursionError, StopIteration, ValueError, csv.Error)


class State(NamedTuple):
    """Size and time of a picture, which show whether it has changed since it was captioned."""

    bytes: int
    modified: int
    """Nanoseconds since 1970."""


_UNKNOWN = State(-1, -1)


def state_of(picture: Path) -> State | None:
    """Return the state of a file, None if it cannot be read."""
    try:
        status = picture.stat()
    except (OSError, ValueError):
        return None
    return State(status.st_size, status.st_mtime_ns)


def _is_same(recorded: State, found: State | None) -> bool:
    """Whether a picture is unchanged, as far as the time in its row is exact.

    Browsers, and so the page, know milliseconds; spreadsheet programs keep 15 digits.
    """
    if found is None:
        return False
    apart = abs(recorded.modified - found.modified)
    return recorded.bytes == found.bytes and apart < 1_000_000


class Row(NamedTuple):
    """What a row says about its picture."""

    path: str
    state: State
    writer: str
    error: str
    """Why the picture could not be read; empty if it was captioned."""
    is_old: bool
    """Whether version 0.2 wrote it."""
    values: dict[str, Any]
    """All columns."""


class Done(NamedTuple):
    """The row of a picture that was tried."""

    state: State
    error: str


class Listing:
    """A file of captions that is being written, by one process at a time; a context manager.

    Args:
        path: its suffix is .csv or .jsonl.
        writer: identity of the weights and options; a file holds the captions of one writer only.
        captions: number of captions of each picture; each has a column of a CSV file.
        overwrite: replace the file as soon as the first row is added.

    Raises:
        UserError: on entering: another process is writing the file; it holds something else, or
            captions by another writer; or it cannot be read or written.
    """

    advice = "choose another --out, or replace the file with --force"
    """What the user can do about a file that holds something else."""

    def __init__(self, path: Path, writer: str, captions: int = 1, overwrite: bool = False) -> None:
        self.path = path
        self._real = Path(real_path(path))  # a link to a listing must stay a link
        self._writer = writer
        self._columns = (*COLUMNS, *(f"caption_{i}" for i in range(2, captions + 1)))
        self._overwrite = overwrite
        self._csv = path.suffix.lower() == ".csv"
        self._done: dict[str, Done] = {}
        self._has_outdated_rows = False
        self._theirs: tuple[str, ...] = ()  # columns that a person added

    def __enter__(self) -> "Listing":
        make_folder(self._real.parent)
        with ExitStack() as stack:
            self._lock(stack)
            exists = is_there(self._real)
            self._overwrite &= exists
            if not exists:
                self._start()
            elif not self._overwrite:
                self._recover()
            self._file = stack.enter_context(self._appending())
            self._open = stack.pop_all()
        return self

    def _start(self) -> None:
        write_atomically(self._real, _csv_line(self._columns) if self._csv else "")

    def _appending(self) -> IO[str]:
        return self._real.open("a", encoding="utf-8", errors=_ERRORS, newline="")

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with self._open:
            self._file.close()
            if self._has_outdated_rows and error is None:
                self._recover()

    def path_of(self, picture: Path) -> str:
        """Return the path that the row of a picture has.

        It is relative to the folder of the listing, unless the two share only the root folder.
        """
        real, folder = real_path(picture), str(self._real.parent)
        try:
            common = os.path.commonpath([real, folder])
        except ValueError:  # on two drives of Windows
            return real
        inside_root = common == os.path.dirname(common)  # noqa: PTH120
        if inside_root and common != folder:
            return real
        return Path(os.path.relpath(real, folder)).as_posix()

    def find(self, picture: Path) -> Done | None:
        """Return the row of a picture; None if it has none, or has changed since."""
        done = self._done.get(real_path(picture))
        return done if done is not None and _is_same(done.state, state_of(picture)) else None

    def add(self, picture: Path, state: State | None, values: dict[str, Any]) -> None:
        """Append the row of a picture.

        Args:
            picture: its path.
            state: its state before it was captioned; None if it must be tried again.
            values: its caption and the other columns.
        """
        if self._overwrite:  # only now, for loading the captioner may have failed
            self._start()
            self._file = self._open.enter_context(self._appending())
            self._overwrite = False
        kept = state or _UNKNOWN
        row = {"path": self.path_of(picture), **values, "error": values.get("error")}
        self._file.write(self._line({**row, **kept._asdict(), "writer": self._writer}))
        self._file.flush()
        real = real_path(picture)
        self._has_outdated_rows |= real in self._done
        self._done[real] = Done(kept, values.get("error") or "")

    def _lock(self, stack: ExitStack) -> None:
        """Lock the file. The lock of a killed process ends with it."""
        busy = f"another process is writing {self.path}; wait until it ends"
        lock = self._real.with_name(f".{self._real.name}.lock")
        try:
            stack.enter_context(locked(lock, busy))
        except OSError as error:
            raise UserError(f"cannot write to {self._real.parent}: {error.strerror}") from error

    def _line(self, row: dict[str, Any]) -> str:
        if not self._csv:
            text = json.dumps(row, ensure_ascii=False)
            return text.encode(errors="backslashreplace").decode() + "\n"
        for i, other in enumerate(row.get("alternatives", ()), 2):
            row[f"caption_{i}"] = other["caption"]
        return _csv_line(_as_cell(row.get(name)) for name in self._columns)

    def _recover(self) -> None:
        """Read which pictures are done; drop an incomplete line and all but the last row of each.

        The file is rewritten only if something changes.
        """
        try:
            lines = self._lines()
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}") from error
        kept: dict[str, str] = {}
        theirs: dict[str, dict[str, str]] = {}
        columns: tuple[str, ...] = ()
        if self._csv:
            header, *lines = lines or [_csv_line(self._columns)]
            columns = OLD_COLUMNS if header == _csv_line(OLD_COLUMNS) else self._columns
            kept["header"] = _csv_line(self._columns)
        self._done = {}
        for number, line in enumerate(lines, 1 + self._csv):
            if not line.strip("\r\n"):
                continue
            row = self._parsed(line, number, columns)
            if row.writer != self._writer:
                raise UserError(
                    f"{self.path}, line {number}: written by another captioner or with other "
                    f"options, so its captions would not be comparable; {self.advice}"
                )
            real = self._located(row) if row.is_old else self._joined(row.path)
            if real is None:
                kept[f"old {line}"] = line
                continue
            if row.is_old:  # from now on its path no longer depends on the current folder
                values = {**row.values, "path": self.path_of(Path(real)), "error": None}
                line = self._line(values)
            if cells := {name: row.values[name] for name in self._theirs if row.values.get(name)}:
                theirs[real] = cells
            elif real in theirs:  # the new row of a picture that has changed
                line = self._line({**row.values, **theirs[real]})
            self._done[real] = Done(row.state, row.error)
            kept[f"row {real}"] = line  # the last row of a picture, where its first one stood
        self._has_outdated_rows = False
        text = "".join(kept.values()).encode("utf-8", _ERRORS)
        if text != self._real.read_bytes():
            write_atomically(self._real, text)

    def _joined(self, path: str) -> str:
        """Return the absolute path of a picture; the path of its row has no links."""
        return os.path.normpath(os.path.join(self._real.parent, path))  # noqa: PTH118

    def _located(self, row: Row) -> str | None:
        """Return the absolute path of the picture of an old row, or None if it is not certain.

        A relative path was relative to the folder in which the command ran, here or elsewhere. So
        only a picture of the same size and time is taken for the one that was captioned.
        """
        if os.path.isabs(row.path):  # noqa: PTH117
            return real_path(Path(row.path))
        for folder in (Path(), self._real.parent):
            if state_of(folder / row.path) == row.state:
                return real_path(folder / row.path)
        return None

    def _lines(self) -> list[str]:
        """Return the complete lines, as this class writes them whatever program saved the file."""
        content = self._real.read_bytes()
        header = content[: content.find(b"\n") + 1].decode("utf-8", _ERRORS)
        own = header in ("", _csv_line(self._columns), _csv_line(OLD_COLUMNS))
        if self._csv and (not own or b"\r" in content or _ROUNDED.search(content)):
            return list(self._converted(content))
        return list(self._complete_lines(content))

    def _complete_lines(self, content: bytes) -> Iterator[str]:
        start = b"path,caption," if self._csv else b'{"path": '
        for number, line in enumerate(io.BytesIO(content), 1):
            if not line.endswith(b"\n") and not self._is_complete(line):  # a killed run wrote it
                if number == 1 and not (line.startswith(start) or start.startswith(line)):
                    raise self._foreign(number)
                return
            yield line.removeprefix(codecs.BOM_UTF8).decode("utf-8", _ERRORS).rstrip("\n") + "\n"

    def _is_complete(self, line: bytes) -> bool:
        """Whether a last line without its end is a whole row; in CSV its last cell may be cut."""
        try:
            if not self._csv:
                return isinstance(json.loads(line), dict)
            cells = next(csv.reader([line.decode("utf-8", _ERRORS)], strict=True))
        except _MALFORMED:
            return False
        return len(cells) == len(self._columns) and not cells[-1]

    def _converted(self, content: bytes) -> Iterator[str]:
        """Yield the lines of a CSV file that a spreadsheet program saved, or a person extended."""
        names, rows = read_table(self.path, content, COLUMNS)
        lost = [name for name in COLUMNS if name not in names]
        if 0 < len(lost) <= len(COLUMNS) // 2:
            raise UserError(
                f"{self.path} has lost the columns {', '.join(lost)}; restore them, or "
                f"{self.advice}"
            )
        if lost or len({*names}) < len(names):
            raise self._foreign(1)
        added = [name for name in names if name not in COLUMNS]
        captions = {name for name in added if re.fullmatch(r"caption_\d+", name)}
        if captions != {*self._columns} - {*COLUMNS, *self._theirs}:
            raise UserError(
                f"{self.path} holds another number of captions of each picture; {self.advice}"
            )
        self._theirs = tuple(name for name in added if name not in captions)
        self._columns += tuple(name for name in self._theirs if name not in self._columns)
        yield _csv_line(self._columns)
        for row in rows:
            found = state_of(Path(self._joined(row["path"])))
            modified = found.modified if found and str(found.bytes) == row["bytes"] else None
            row["modified"] = exact(row["modified"], modified)
            yield _csv_line(" ".join(row[name].splitlines()) for name in self._columns)

    def _parsed(self, line: str, number: int, columns: tuple[str, ...]) -> Row:
        try:
            if self._csv:
                cells = next(csv.reader([line], strict=True))
                is_old = len(cells) == len(OLD_COLUMNS)
                values = dict(zip(OLD_COLUMNS if is_old else columns, cells, strict=True))
            else:
                values = json.loads(line)
                is_old = "error" not in values
            state = State(int(values["bytes"]), int(values["modified"]))
            path, error = values["path"], values.get("error") or ""
            if not isinstance(path, str) or "\0" in path:
                raise ValueError("expected a path")
            return Row(path, state, str(values["writer"]), str(error), is_old, values)
        except _MALFORMED as error:
            raise self._foreign(number) from error

    def _foreign(self, number: int) -> UserError:
        return UserError(
            f"{self.path}, line {number}: expected a caption written by decoder.caption; "
            f"{self.advice}"
        )


def write_listing(writer: CaptionWriter, paths: Sequence[Path], out: Path, overwrite: bool) -> None:
    """Add the captions of the pictures that `out` does not hold yet.

    A picture that cannot be read has a row with the reason. It is tried again once it has changed.

    Raises:
        UserError: see `Listing`, `check_names` and `CaptionWriter.results`.
    """
    if out.suffix.lower() == ".csv":
        check_names(map(Path, map(real_path, paths)), "a CSV file")
    states = {path: state_of(path) for path in paths}
    with Listing(out, writer.identity(), writer.captions_each, overwrite) as listing:
        missing: list[Path] = []
        done = 0
        for path in paths:
            row = listing.find(path)
            if row is None:
                missing.append(path)
            elif row.error:
                writer.unreadable.append((path, _as_error(row.error)))
            else:
                done += 1
        for path, result in writer.results(missing, done):
            passing = isinstance(result, PictureError) and result.passing
            listing.add(path, None if passing else states[path], writer.as_json(result))
    added = f"{writer.written} caption{'s' * (writer.written != 1)}"
    failed = len(writer.unreadable)
    without = f", {failed} picture{'s' * (failed != 1)} without one (named below)" if failed else ""
    print(f"caption: {added} added to {out}, {done} already there{without}")


def _as_error(reason: str) -> PictureError:
    """Return the error of a picture from its row; one that shows nothing is readable."""
    if reason.startswith(NOTHING):
        return EmptyPicture(reason.removeprefix(NOTHING), spacer=False)
    return PictureError(reason)


def _as_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return "; ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _csv_line(cells: Iterable[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
