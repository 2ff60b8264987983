"""The data sets by name: read one, check it and return its caption table."""

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from features.errors import UserError, first_few
from features.folders import walk
from features.progress import track
from pipeline import captions, shapes
from pipeline.captions import CaptionTable, Image, Source
from pipeline.cleaning import Cleaning
from pipeline.options import PrepareOptions, content_of_root
from pipeline.readers.coco import read_coco
from pipeline.readers.files import EMPTY, captions_file, kind_of_file, unreadable_picture
from pipeline.readers.flickr import read_flickr8k, read_flickr30k
from pipeline.readers.folder import read_folder
from pipeline.readers.karpathy import read_karpathy
from pipeline.readers.names import PictureNames, match_names
from pipeline.readers.records import Reading, Record
from pipeline.work import WorkFolder


def read_shapes(root: Path, options: PrepareOptions) -> Reading:
    """Draw the built-in data set into `root`."""
    scenes = shapes.draw(root, options.images, options.seed, options.size)
    return Reading(root, [Record(scene.file_name, scene.split, scene.captions) for scene in scenes])


# Suffixes of files that may hold captions.
_TEXTS = {".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".caption", ".token"}

READERS: dict[str, Callable[[Path, PrepareOptions], Reading]] = {
    "shapes": read_shapes,
    "flickr8k": read_flickr8k,
    "flickr30k": read_flickr30k,
    "coco": read_coco,
    "karpathy": read_karpathy,
    "folder": read_folder,
}


def load_table(
    options: PrepareOptions, known: Mapping[str, int] | None = None
) -> tuple[CaptionTable, list[str]]:
    """Read the chosen data set; return its table, and remarks for the user.

    Images are sorted by id. If the data set has no ids, pictures keep those in `known`, by file
    name; otherwise they are 1, 2, ... in order of file names.

    Raises:
        UserError: the data set is missing or damaged, lacks pictures (unless `skip_missing`), or
            has no captions.
    """
    root = options.root or WorkFolder(options.work).images
    if options.root is not None and not root.is_dir():
        found = "there is no such folder"
        if root.is_file():
            found = f"it is {kind_of_file(root) or 'a file'}"
        raise UserError(f"--root {root}: {found}; expected {content_of_root(options.dataset)}")
    reading = READERS[options.dataset](root, options)
    remarks = list(reading.remarks)
    records = [record for record in reading.records if record.split]
    _remark(remarks, len(reading.records) - len(records), "images are in no split, left out")
    records, renamed = match_names(records, reading.image_root)
    remarks += renamed
    _check_inside(records, reading.image_root)
    numbered = _numbered(records, options.dataset, known or {}, reading.image_root)
    existing = _existing(numbered, reading.image_root, options.skip_missing, remarks)
    source = Source(options.name or options.dataset, options.dataset, options.terms)
    images = _with_captions(existing, source.name, remarks)
    if not images:
        raise UserError(f"{root}: expected images with captions, found none in any split")
    return CaptionTable(options.dataset, reading.image_root, tuple(images), (source,)), remarks


def _remark(remarks: list[str], count: int, what: str, items: Iterable[object] = ()) -> None:
    if count:
        named = first_few(items)
        remarks.append(f"{count} {what}" + (f": {named}" if named else ""))


def _check_inside(records: list[Record], image_root: Path) -> None:
    outside = [r.file_name for r in records if captions.leaves_root(r.file_name)]
    if outside:
        raise UserError(
            f"{image_root}: expected file names inside of it, {len(outside)} of {len(records)} "
            f"leave it: {first_few(map(repr, outside))}{_near_misses(outside, image_root)}"
        )


def kept_ids(ids: Mapping[str, int], known: Mapping[str, int], root: Path) -> dict[str, int]:
    """Return the image id of each file name: the known one, else that in `ids` if it is free.

    An id is not free if another picture had it. Such pictures get ids larger than all others.
    Pictures are known by their path, or by their name in `root`, which may have moved.
    """
    there = root.resolve()
    by_path = {name: known[path] for name in ids if (path := str(there / name)) in known}
    used = {*by_path.values()}  # the picture of that name is there, under its path
    by_name = {name: known[name] for name in ids if name in known and known[name] not in used}
    before = by_name | by_path
    if not before:
        return dict(ids)
    taken = {*known.values()}
    larger = itertools.count(max((*taken, *ids.values())) + 1)
    kept = {}
    for name, own in ids.items():
        number = before.get(name)
        kept[name] = (next(larger) if own in taken else own) if number is None else number
    return kept


def _numbered(
    records: list[Record], dataset: str, known: Mapping[str, int], root: Path
) -> list[tuple[int, Record]]:
    """Return (id, record) pairs sorted by id; without ids, number the records by file name."""
    names = Counter(captions.check_file_name(record.file_name) for record in records)
    repeated = [name for name, count in names.items() if count > 1]
    if repeated:
        raise UserError(
            f"{dataset}: {len(repeated)} images are listed twice: {first_few(repeated)}"
        )
    if all(record.id is None for record in records):
        by_name = {record.file_name: record for record in records}
        given = {name: number for number, name in enumerate(sorted(by_name), 1)}
        given = kept_ids(given, known, root)
        return sorted(((i, by_name[name]) for name, i in given.items()), key=lambda pair: pair[0])
    numbered = []
    for record in records:
        if not captions.is_id(record.id):
            raise UserError(
                f"{dataset}: expected a non-negative integer as the id of {record.file_name}, "
                f"found {record.id!r}"
            )
        numbered.append((record.id, record))
    ids = Counter(image_id for image_id, _ in numbered)
    shared = [str(image_id) for image_id, count in ids.items() if count > 1]
    if shared:
        raise UserError(f"{dataset}: {len(shared)} image ids occur twice: {first_few(shared)}")
    return sorted(numbered, key=lambda pair: pair[0])


def _existing(
    numbered: list[tuple[int, Record]], image_root: Path, skip_missing: bool, remarks: list[str]
) -> list[tuple[int, Record]]:
    """Return the records whose picture exists; refuse missing ones, unless `skip_missing`."""
    existing, missing = [], []
    unreadable: dict[str, str] = {}
    for image_id, record in track(numbered, "read", "picture"):
        # Path.is_file raises if the name is too long or the folder is not readable.
        if os.path.isfile(image_root / record.file_name):  # noqa: PTH113
            existing.append((image_id, record))
            if why := unreadable_picture(image_root / record.file_name):
                unreadable[record.file_name] = why
        else:
            missing.append(record.file_name)
    trains = any(record.split == "train" for _, record in numbered)
    useful = any(
        any(record.captions) and (record.split == "train" or not trains) for _, record in existing
    )
    if missing and not (skip_missing and useful):
        kind = "training picture" if trains else "picture with a caption"
        raise UserError(
            f"{image_root}: {len(missing)} of {len(numbered)} pictures are missing: "
            f"{first_few(missing)}; "
            + ("--skip-missing leaves them out" if useful else f"no {kind} would be left")
            + _near_misses(missing, image_root)
        )
    _remark(remarks, len(missing), "pictures are missing, left out", missing)
    _check_readable(unreadable, len(existing), image_root, remarks)
    return existing


def _near_misses(missing: list[str], image_root: Path) -> str:
    names = PictureNames(image_root)
    near = ((name, names.nearest(name)) for name in missing[:5])
    hints = [f"{file!r} for {name!r}" for name, file in near if file]
    return f"; did you mean {', '.join(hints)}?" if hints else "; check --root and the names"


def _check_readable(
    unreadable: dict[str, str], count: int, image_root: Path, remarks: list[str]
) -> None:
    """Name the pictures that cannot be read; UserError if all are the same other kind of file."""
    kinds = Counter(unreadable.values())
    if len(unreadable) == count and len(kinds) == 1 and (why := next(iter(kinds))) != EMPTY:
        raise UserError(
            f"{image_root}: expected pictures, found in each of the {count} files {why}"
        )
    named = (f"{name} ({why})" for name, why in unreadable.items())
    _remark(
        remarks, len(unreadable), "pictures cannot be read, pipeline.extract leaves them out", named
    )


def _with_captions(
    numbered: list[tuple[int, Record]], source: str, remarks: list[str]
) -> list[Image]:
    """Tokenize; leave out captions without a word and images without a caption."""
    images, cleaning = [], Cleaning()
    for image_id, record in track(numbered, "tokenize", "image"):
        if kept := cleaning.captions(record.file_name, record.captions):
            images.append(Image(image_id, record.file_name, str(record.split), kept, source))
    remarks += cleaning.remarks()
    return images


def caption_files(options: PrepareOptions) -> list[Path]:
    """Return the files and folders that determine what `load_table` returns.

    These are the text files in the root and one folder below (for `folder`, in all below), and
    those folders themselves: their modification time changes when a picture is added or removed.
    """
    root = options.root
    if root is None or not root.is_dir():
        return []
    deep = options.dataset == "folder"
    folders: list[Path] = []
    files: list[Path] = []
    seen = {os.path.realpath(options.work)}
    # Links are followed, as the pictures behind them are read too.
    for name, inner, names in walk(root, followlinks=True):
        folder, real = Path(name), os.path.realpath(name)
        if real in seen or not (deep or folder == root):
            inner.clear()
        if real in seen:
            continue
        seen.add(real)
        folders.append(folder)
        files += [folder / one for one in names if Path(one).suffix.lower() in _TEXTS]
    chosen = [captions_file(root, options.captions, ())] if options.captions else []
    return [*folders, *sorted(files), *chosen]
