"""Rows of a table: CSV with any usual separator, JSON Lines or JSON."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from features.errors import UserError
from features.kinds import PICTURE_SUFFIXES
from pipeline.readers.files import read_text

_SEPARATORS = ",;\t|"
_PICTURE_NAME = re.compile(
    rf"[^\s\"'].*({'|'.join(map(re.escape, sorted(PICTURE_SUFFIXES)))})(#\d+)?", re.IGNORECASE
)


@dataclass(frozen=True)
class Row:
    """One row: where it is in the file ("line 3"), and its values by the names of the columns."""

    where: str
    cells: dict[str, Any]


@dataclass(frozen=True)
class Table:
    """All rows of a file, its name for the user, and remarks about lines that are no rows."""

    path: Path
    name: str
    rows: list[Row]
    remarks: list[str] = field(default_factory=list)


def read_table(path: Path, name: str) -> Table:
    """Read a table: .jsonl, .ndjson and .json as JSON, everything else as CSV.

    Raises:
        UserError: a line cannot be read as a row of the table; the message names the line.
    """
    text = read_text(path)
    if not text.strip():
        raise UserError(f"{path}: expected a table, found an empty file")
    if path.suffix.lower() in (".json", ".jsonl", ".ndjson"):
        return Table(path, name, _json_rows(path, text))
    rows, remarks = _csv_rows(path, text)
    return Table(path, name, rows, [f"{name}: {remark}" for remark in remarks])


def column_key(name: str) -> str:
    """Return the form in which names of columns are compared: "File Name" is file_name."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    return re.sub(r"[\W_]+", "_", name).strip("_").lower()


def _distinct(names: Iterable[str]) -> list[str]:
    """Number repeated names: caption, caption becomes caption, caption_2."""
    seen: Counter[str] = Counter()
    distinct: list[str] = []
    for name in names:
        seen[name] += 1
        distinct.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return distinct


# JSON


def _json_rows(path: Path, text: str) -> list[Row]:
    """Return the objects of a JSON array, of an object with one list, or of JSON Lines."""
    if path.suffix.lower() == ".json" or text.lstrip().startswith("["):
        try:
            content = json.loads(text, object_pairs_hook=_object)
            if path.suffix.lower() == ".json" or all(isinstance(item, dict) for item in content):
                return _json_objects(path, content)
        except (ValueError, RecursionError) as error:
            if path.suffix.lower() == ".json" and "Extra data" not in str(error):
                raise UserError(f"{path}: expected JSON: {error}") from error
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: expected JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: expected a JSON object, found {line!r:.80}")
        rows.append(Row(f"line {number}", row))
    return rows


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Keep every value where an object repeats a key, which JSON allows."""
    return dict(zip(_distinct(key for key, _ in pairs), (value for _, value in pairs), strict=True))


def _json_objects(path: Path, content: Any) -> list[Row]:
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        if content and all(_PICTURE_NAME.fullmatch(name.strip()) for name in content):
            # {"a.jpg": ["A dog runs.", "A dog"], ...}
            content = [{"file_name": name, "caption": value} for name, value in content.items()]
        elif len(lists) == 1 and all(isinstance(item, dict) for item in lists[0]):
            content = lists[0]
        else:
            raise UserError(
                f"{path}: expected a list of objects with a picture and its captions, found an "
                f"object with {', '.join(list(content)[:5]) or 'no keys'}"
            )
    if not isinstance(content, list):
        raise UserError(f"{path}: expected a list of objects, found {content!r:.80}")
    for number, item in enumerate(content, 1):
        if not isinstance(item, dict):
            raise UserError(f"{path}, item {number}: expected a JSON object, found {item!r:.80}")
    return [Row(f"item {number}", item) for number, item in enumerate(content, 1)]


# CSV


def _csv_rows(path: Path, text: str) -> tuple[list[Row], list[str]]:
    """Return the rows of a CSV file, and remarks.

    The separator is the one that Excel's first line `sep=` names, or else whichever of comma,
    semicolon, tab and bar is most frequent in the header. csv.Sniffer also looks at the captions,
    and their punctuation misleads it.
    """
    text = text.replace("\r\r\n", "\n")
    start = len(text) - len(text.lstrip("\n\r"))
    skipped, text = text[:start].count("\n"), text[start:]
    separator = None
    header, _, rest = text.partition("\n")
    if match := re.fullmatch(r'\s*"?sep=(.|\\t)"?[,;\t|]*\s*', header.rstrip("\r"), re.IGNORECASE):
        separator, text, skipped = match[1].replace("\\t", "\t"), rest, skipped + 1
        header = text.partition("\n")[0]
    separator = separator or max(_SEPARATORS, key=header.count)
    try:
        lines = _parse(path, text, separator, skipped)
    except UserError:
        if r"\"" in text:  # quotes escaped as in C, not doubled
            lines = _parse(path, text.replace(r"\"", '""'), separator, skipped)
        elif separator in "\t|":  # such tables often have no quoting at all
            lines = _unquoted(path, text, separator, skipped)
        else:
            raise
    if not lines:
        return [], []
    names = _header(path, *lines[0])
    wider = [line for line, cells in lines[1:] if len(cells) > 1]
    if len(lines) == 1 or (len(names) == 1 and wider):
        raise UserError(
            f"{path}, line {lines[0][0]}: expected the names of the columns, such as "
            f"file_name,caption, and rows below them, found {header.strip()!r:.80}"
        )
    return _rows(path, names, lines[1:])


def _parse(path: Path, text: str, separator: str, skipped: int) -> list[tuple[int, list[str]]]:
    """Return (number of the first line, cells) of each row; `skipped` lines came before `text`."""
    reader = csv.reader(
        io.StringIO(text), delimiter=separator, strict=True, skipinitialspace=separator != " "
    )
    rows, end = [], 0
    try:
        for cells in reader:
            first, end = end + 1 + skipped, reader.line_num
            check_swallowed(path, first, cells, separator)
            if cells:
                rows.append((first, cells))
    except csv.Error as error:
        hint = ""
        if "end of data" in str(error):
            hint = ": a quote that opens in this row is never closed"
        elif "expected after" in str(error):
            hint = ': double a quote inside a quoted cell, as in "a ""big"" dog"'
        raise UserError(f"{path}, line {end + 1 + skipped}: {error}{hint}") from error
    return rows


def _unquoted(path: Path, text: str, separator: str, skipped: int) -> list[tuple[int, list[str]]]:
    """As `_parse`, with quotes as ordinary characters; no row may be longer than the header."""
    lines = [line.rstrip("\r").split(separator) for line in text.split("\n")]
    if any(len(cells) > len(lines[0]) for cells in lines):
        return _parse(path, text, separator, skipped)
    return [(skipped + i, cells) for i, cells in enumerate(lines, 1) if cells != [""]]


def check_swallowed(path: Path, line: int, cells: list[str], separator: str) -> None:
    """Raise UserError if a cell has swallowed rows, because a quote was not closed."""
    for cell in cells:
        if "\n" not in cell:
            continue
        for offset, inner in enumerate(cell.split("\n")):
            fields = [part.strip().strip('"') for part in inner.split(separator)]
            if len(fields) < 2:
                continue
            # Names of pictures, or numbers in the column where this row has one.
            numbers = len(fields) == len(cells) and any(
                a.isdigit() and b.isdigit() for a, b in zip(fields, cells, strict=True)
            )
            if numbers or any(_PICTURE_NAME.fullmatch(part) for part in fields):
                raise UserError(
                    f"{path}, line {line}: a quote that opens in this row is not closed, so the "
                    f"cell swallows the rows that follow: {inner.strip()!r:.80} (line "
                    f"{line + offset}); close the quote, or double it if it belongs to the text"
                )


def _header(path: Path, line: int, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    while names and not names[-1]:  # separators at the end of the line
        names.pop()
    pictures = [name for name in names if _PICTURE_NAME.fullmatch(name)]
    if pictures:
        raise UserError(
            f"{path}, line {line}: expected the names of the columns, such as file_name,caption, "
            f"found the picture {pictures[0]}; add such a line at the top"
        )
    return _distinct(names)


def _rows(
    path: Path, names: list[str], lines: list[tuple[int, list[str]]]
) -> tuple[list[Row], list[str]]:
    keys = [column_key(name) for name in names]
    rows: list[Row] = []
    counts: Counter[str] = Counter()
    for line, cells in lines:
        if not any(cell.strip() for cell in cells):
            counts["rows are blank"] += 1
            continue
        if column_key(cells[0]) in keys:
            if [column_key(cell) for cell in _distinct(cell.strip() for cell in cells)] == keys:
                counts["rows repeat the header"] += 1
                continue
            if sorted(map(column_key, cells)) == sorted(keys):
                raise UserError(
                    f"{path}, line {line}: expected the columns in the first header's order, found "
                    f"a second header {', '.join(cells)}; make two tables of it"
                )
        while len(cells) > len(names) and not cells[-1].strip():
            cells = cells[:-1]
        if len(cells) < len(names):
            repaired = _with_number(keys, cells)
            counts["rows lack the separator after the caption's number, which was added"] += (
                repaired is not None
            )
            counts["rows have fewer cells than the header"] += repaired is None
            cells = repaired or cells
        if len(cells) > len(names):
            raise UserError(
                f"{path}, line {line}: expected {len(names)} columns, found {len(cells)}; "
                f"{_advice(cells)}"
            )
        rows.append(Row(f"line {line}", dict(zip(names, cells, strict=False))))
    return rows, [f"{n} {what}" for what, n in counts.items() if n]


def _with_number(keys: list[str], cells: list[str]) -> list[str] | None:
    """Repair the row of Kaggle's Flickr30k that reads "2199200615.jpg| 4   A dog runs"."""
    if keys[-2:-1] == ["comment_number"] and len(cells) == len(keys) - 1:
        match = re.fullmatch(r"\s*(\d+)\s+(\S.*)", cells[-1])
        return [*cells[:-1], *match.groups()] if match else None
    return None


def _advice(cells: list[str]) -> str:
    """Return how to write a caption that was read as more than one cell."""
    if any(cell.lstrip().startswith(("'", "‘", "“", "„", "«")) for cell in cells):
        return 'CSV allows no other quotes around a cell than "..."'
    if any('"' in cell for cell in cells):
        return 'the quotes must enclose the complete cell, and those inside are doubled ("")'
    return "put the caption in quotes"
