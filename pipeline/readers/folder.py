"""Reader of the data set `folder`: your own pictures with captions in a table or beside them."""

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from features.commands import SEARCH
from features.errors import UserError, first_few, unreadable
from features.folders import find_pictures, passed_over_note, walk
from features.kinds import PICTURE_SUFFIXES
from pipeline.options import PrepareOptions
from pipeline.readers.beside import read_beside
from pipeline.readers.cells import is_missing
from pipeline.readers.coco import is_coco, read_coco_file
from pipeline.readers.columns import captions_of, choose_columns, described, image_of
from pipeline.readers.files import captions_file, kind_of_file, read_json
from pipeline.readers.names import match_names
from pipeline.readers.records import Reading, Record, merge, split_by_hash, split_name
from pipeline.readers.tables import read_table

_TABLES = ("*.csv", "*.tsv", "*.jsonl", "*.ndjson", "captions.txt")
_SPLIT_WORD = re.compile(
    r"(?:^|[^a-z])(train|training|val|valid|validation|dev|test|testing)(?:$|[^a-z])"
)


@dataclass(frozen=True)
class _Source:
    """A table, the folder that its file names start from, and the split of all its rows."""

    path: Path
    folder: str = ""
    split: str | None = None


def read_folder(root: Path, options: PrepareOptions) -> Reading:
    """Read `--captions`, the only table in the root, one for each split, or files beside pictures.

    A table names pictures relative to itself or to the root and has one column or more of captions
    (`choose_columns`); a picture may have more rows than one. The optional column split is train,
    val or test; if it is empty, the picture is in no split. Without it, folders or tables named
    train, val and test give the splits, or else `split_by_hash` does.

    Raises:
        UserError: a table is not understood to the last row, or a picture is in two splits.
    """
    sources = _sources(root, options.captions)
    pictures, passed_over = _pictures(root, options.work)
    remarks: list[str] = []
    records: list[Record] = []
    has_splits = False
    for source in sources:
        read, says, gives_splits = _read_source(root, source, options.columns)
        records += read
        remarks += says
        has_splits |= gives_splits
    if not sources:
        pairs, remarks = read_beside(root, pictures)
        if not pairs:
            raise _nothing(root, remarks if pictures else [])
        records = merge(pairs)
    origin = sources[0].path if sources else root
    records, renamed = match_names(_joined(records, origin), root)
    remarks += renamed
    if passed_over:
        remarks.append(f"passed over in the folder: {passed_over}")
    without_row = pictures - {record.file_name for record in records}
    if without_row and sources:
        named = first_few(sorted(without_row))
        where = " and ".join(source.path.name for source in sources)
        remarks.append(f"{len(without_row)} pictures have no row in {where}: {named}")
    if has_splits:
        return Reading(root, records, remarks)
    if by_folder := _split_by_folder(records):
        return Reading(root, by_folder, [*remarks, "no column split: split by folder"])
    remarks.append(f"no column split: split by file name 80:10:10 with --seed {options.seed}")
    return Reading(root, split_by_hash(records, options.seed, origin), remarks)


def _read_source(
    root: Path, source: _Source, chosen: str | None
) -> tuple[list[Record], list[str], bool]:
    """Return the records of a table, remarks, and whether the table gives splits."""
    path = source.path
    content = None
    if path.suffix.lower() == ".json":
        with suppress(UserError):  # JSON Lines, or `read_table` says what is wrong
            content = read_json(path)
    if is_coco(content):
        records, remarks = read_coco_file(path, content)
        records = [
            replace(
                r,
                file_name=_placed(root, source.folder, r.file_name),
                split=r.split or source.split,
            )
            for r in records
        ]
        return records, remarks, any(r.split for r in records)
    table = read_table(path, str(PurePosixPath(source.folder, path.name)))
    columns = choose_columns(table, chosen)
    pairs: list[tuple[str, str]] = []
    splits: dict[str, str | None] = {}
    for row in table.rows:
        name = _placed(root, source.folder, image_of(row, columns, path))
        captions = captions_of(row, columns, path)
        pairs += [(name, text) for text in captions]
        split = source.split
        value = row.cells.get(columns.split) if columns.split else None
        try:
            if value and str(value).strip().lower() not in ("nan", "null", "none"):
                split = split_name(value)
        except (UserError, AttributeError) as error:
            raise UserError(f"{path}, {row.where}: {error}") from error
        if splits.setdefault(name, split) != split:
            raise UserError(
                f"{path}, {row.where}: {name} is in the split {split} and in {splits[name]}"
            )
    unique = list(dict.fromkeys(pairs))
    remarks = [described(table, columns, len(pairs)), *table.remarks]
    if repeated := len(pairs) - len(unique) - _empty(pairs) + _empty(unique):
        remarks.append(f"{table.name}: {repeated} captions of a picture are repeated, counted once")
    kept = [p for p in pairs if is_missing(p[1])] + [p for p in unique if not is_missing(p[1])]
    return merge(kept, splits), remarks, columns.split is not None or source.split is not None


def _empty(pairs: Iterable[tuple[str, str]]) -> int:
    return sum(is_missing(text) for _, text in pairs)


def _placed(root: Path, folder: str, name: str) -> str:
    """Return the name of a picture relative to the root: in the table's folder, if it is there."""
    # A name with blanks or backslashes stays as it is, for `match_names` to find.
    plain = str(PurePosixPath(name)) if name.strip() else name
    if not folder:
        return plain
    inside = str(PurePosixPath(folder, plain))
    if os.path.isfile(root / plain) and not os.path.isfile(root / inside):  # noqa: PTH113
        return plain
    return inside


def _joined(records: list[Record], origin: Path) -> list[Record]:
    """Return the records of several tables with one record for each name."""
    joined: dict[str, Record] = {}
    for record in records:
        before = joined.setdefault(record.file_name, record)
        if before is record:
            continue
        if before.split != record.split:
            raise UserError(
                f"{origin.parent}: {record.file_name} is in the split {before.split} and in "
                f"{record.split}"
            )
        joined[record.file_name] = replace(before, captions=before.captions + record.captions)
    return list(joined.values())


# Which files hold the captions


def _sources(root: Path, chosen: Path | None) -> list[_Source]:
    """Return the tables to read; none if the captions are beside the pictures."""
    if chosen is not None:
        return [_source(root, captions_file(root, chosen, ()))]
    tables = _matching(root)
    if len(tables) == 1:
        return [_Source(tables[0])]
    if tables:
        by_split = _tables_by_split(tables)
        # More than one: the message of `captions_file` asks which.
        return by_split or [_Source(captions_file(root, None, _TABLES))]
    # In any folder, as Hugging Face reads them.
    deeper = [path for path in _tables_below(root) if path.stem == "metadata"]
    for parent in (root, root / "data"):
        sources = _split_folders(root, parent)
        if sources and {source.path for source in sources} >= set(deeper):
            return sources
    if deeper:
        return [_source(root, path) for path in deeper]
    loose = [
        path
        for path in sorted(root.glob("*.json"))
        if not path.name.startswith(".") and not path.name.endswith("_stats.json")
        if not any(path.with_suffix(suffix).exists() for suffix in PICTURE_SUFFIXES)
    ]
    if len(loose) > 1:
        by_split = _tables_by_split(loose)
        return by_split or [_Source(captions_file(root, None, ("*.json",)))]
    return [_Source(path) for path in loose]


def _matching(folder: Path) -> list[Path]:
    paths = {path for pattern in _TABLES for path in folder.glob(pattern)}
    return sorted(path for path in paths if path.is_file() and not path.name.startswith("."))


def _tables_below(root: Path) -> list[Path]:
    found: list[Path] = []
    for folder, folders, _ in walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += _matching(Path(folder))
    return sorted(found)


def _source(root: Path, path: Path) -> _Source:
    try:
        inside = path.parent.resolve().relative_to(root.resolve())
    except (ValueError, OSError, RuntimeError):
        return _Source(path)
    return _Source(path, "" if inside == Path() else inside.as_posix())


def _tables_by_split(tables: list[Path]) -> list[_Source]:
    """Return train.csv, val.csv and the like with their splits; nothing if that is not clear."""
    words = [_SPLIT_WORD.findall(path.stem.lower()) for path in tables]
    if any(len(found) != 1 for found in words):
        return []
    splits = [split_name(found[0]) for found in words]
    if len(set(splits)) < len(splits) or "train" not in splits:
        return []
    return [_Source(path, split=split) for path, split in zip(tables, splits, strict=True)]


def _split_folders(root: Path, parent: Path) -> list[_Source]:
    """Return the tables of Hugging Face's imagefolder: train/metadata.csv and so on."""
    sources = []
    for folder in sorted(path for path in parent.glob("*") if path.is_dir()):
        try:
            split = split_name(folder.name)
        except UserError:
            continue
        tables = _matching(folder)
        named = [path for path in tables if path.stem == "metadata"]
        if len(named or tables) > 1:
            raise UserError(
                f"{folder}: expected one table of captions, found "
                f"{first_few(path.name for path in tables)}"
            )
        inside = folder.relative_to(root).as_posix()
        sources += [_Source(path, inside, split) for path in named or tables]
    if len({source.split for source in sources}) == 1:  # only train/, as many data sets have it
        return [replace(source, split=None) for source in sources]
    return sources


def _split_by_folder(records: list[Record]) -> list[Record]:
    """Return the records split by their first folder, if all are in train, val or test folders."""
    split = []
    for record in records:
        first, *rest = PurePosixPath(record.file_name).parts or ("",)
        if first == "data" and len(rest) > 1:
            first = rest.pop(0)
        try:
            split.append(replace(record, split=split_name(first if rest else "")))
        except UserError:
            return []
    names = {record.split for record in split}
    return split if "train" in names and len(names) > 1 else []


def _pictures(root: Path, work: Path) -> tuple[set[str], str]:
    """Return the file names of all pictures below `root`, and what else was passed over there.

    Pictures in the work directory do not count.
    """
    work = Path(os.path.realpath(work))  # unlike Path.resolve, it accepts circular links
    found = find_pictures([root])
    for path, error in found.closed:
        raise unreadable(path, error)
    names = {
        path.relative_to(root).as_posix()
        for path in found.pictures
        if work not in Path(os.path.realpath(path)).parents
    }
    return names, passed_over_note(found.passed_over)


def _nothing(root: Path, remarks: Iterable[str]) -> UserError:
    """Return the error for a folder without captions; it names files that may have been meant."""
    others = []
    for path in sorted(root.iterdir()):
        if path.is_file() and path.suffix.lower() not in PICTURE_SUFFIXES:
            kind = kind_of_file(path)
            others.append(f"{path.name} ({kind})" if kind else path.name)
    found = f"found {first_few(others)}" if others else "found none"
    details = "".join(f"; {remark}" for remark in list(remarks)[1:])
    return UserError(
        f"{root}: expected one *.csv or *.jsonl, or a .txt beside each picture, {found}{details}; "
        f"name the table with --captions; to find pictures by words, which needs no captions: "
        f"{SEARCH} --folder {root}"
    )
