"""Reader of the data set `folder`: your own pictures with a CSV or JSONL file of captions."""

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from features.errors import UserError, first_few
from features.folders import find_pictures
from pipeline.options import PrepareOptions
from pipeline.readers.files import captions_file, read_text
from pipeline.readers.records import Reading, merge, split_by_hash, split_name

_NAME_COLUMNS = ("file_name", "image", "file", "path")
_CAPTION_COLUMNS = ("caption", "captions")


def read_folder(root: Path, options: PrepareOptions) -> Reading:
    """Read `--captions`, or the only .csv or .jsonl file in the root.

    The column file_name (or image, file, path) names a picture relative to the root, the column
    caption holds its caption. A picture with more captions has more rows or, in JSONL, a list. The
    optional column split is train, val or test; if it is empty, the picture is in no split. Without
    that column, `split_by_hash` makes the splits.

    Raises:
        UserError: a row lacks a column or is not JSON, or a picture is in two splits.
    """
    path = captions_file(root, options.captions, ("*.csv", "*.jsonl"))
    rows = _jsonl_rows(path) if path.suffix.lower() == ".jsonl" else _csv_rows(path)
    pairs: list[tuple[str, str]] = []
    splits: dict[str, str | None] = {}
    has_splits = False
    for line, row in rows:
        where = f"{path}, line {line}"
        name = _column(row, _NAME_COLUMNS, where)
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{where}: expected the file name of a picture, found {name!r}")
        name = str(PurePosixPath(name))  # so that ./a.jpg and a.jpg are one picture
        captions = _column(row, _CAPTION_COLUMNS, where)
        pairs += [(name, text) for text in (captions if isinstance(captions, list) else [captions])]
        has_splits |= "split" in row
        try:
            split = split_name(row["split"]) if row.get("split") else None
        except (UserError, AttributeError) as error:
            raise UserError(f"{where}: {error}") from error
        if splits.setdefault(name, split) != split:
            raise UserError(f"{where}: {name} is in the split {split} and in {splits[name]}")
    records = merge(pairs, splits)
    remarks = []
    without_captions = _pictures(root, options.work) - splits.keys()
    if without_captions:
        named = first_few(sorted(without_captions))
        remarks.append(f"{len(without_captions)} pictures have no row in {path.name}: {named}")
    if not has_splits:
        remarks.append(f"no column split: split by file name 80:10:10 with --seed {options.seed}")
        records = split_by_hash(records, options.seed, path)
    return Reading(root, records, remarks)


def _pictures(root: Path, work: Path) -> set[str]:
    """Return the file names of all pictures below `root` that are not in the work directory."""
    work = Path(os.path.realpath(work))  # unlike Path.resolve, it accepts circular links
    return {
        path.relative_to(root).as_posix()
        for path in find_pictures([root]).pictures
        if work not in Path(os.path.realpath(path)).parents
    }


def _column(row: dict[str, Any], names: tuple[str, ...], where: str) -> Any:
    for name in names:
        if row.get(name) is not None:
            return row[name]
    filled = [name for name, value in row.items() if value is not None]
    raise UserError(f"{where}: expected {' or '.join(names)}, found only {', '.join(filled)}")


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: expected JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: expected a JSON object, found {line!r}")
        yield number, row


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line number and the columns of each row.

    The separator is whichever of comma, semicolon and tab is most frequent in the header.
    csv.Sniffer also looks at the captions, and their punctuation misleads it.
    """
    text = read_text(path)
    header = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text), delimiter=max(",;\t", key=header.count), strict=True)
    try:
        reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
        for row in reader:
            if None in row:
                raise UserError(
                    f"{path}, line {reader.line_num}: expected {len(reader.fieldnames)} "
                    f"columns, found {len(row) - 1 + len(row[None])}; put the caption in quotes"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.reader.line_num}: {error}") from error
