"""Every data set by its name, read and checked into one caption table."""

import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm import tqdm

from features.errors import UserError, first_few
from pipeline import captions, shapes
from pipeline.captions import Caption, CaptionTable, Image
from pipeline.options import PrepareOptions
from pipeline.readers.coco import read_coco
from pipeline.readers.flickr import read_flickr8k, read_flickr30k
from pipeline.readers.folder import read_folder
from pipeline.readers.karpathy import read_karpathy
from pipeline.readers.records import Reading, Record, captions_file
from pipeline.text import CONTROL, tokenize


def read_shapes(root: Path, options: PrepareOptions) -> Reading:
    """Draw the built-in data set into `root`."""
    scenes = shapes.draw(root, options.images, options.seed, options.size)
    return Reading(root, [Record(scene.file_name, scene.split, scene.captions) for scene in scenes])


READERS: dict[str, Callable[[Path, PrepareOptions], Reading]] = {
    "shapes": read_shapes,
    "flickr8k": read_flickr8k,
    "flickr30k": read_flickr30k,
    "coco": read_coco,
    "karpathy": read_karpathy,
    "folder": read_folder,
}


def load_table(options: PrepareOptions) -> tuple[CaptionTable, list[str]]:
    """Read the data set that `options` names; return its table and remarks on what was left out.

    Images are in order of their ids: the data set's own, or 1, 2, ... in order of file names.

    Raises:
        UserError: the data set is not there, is damaged, names pictures that are not
            there (unless `skip_missing`), or has no caption to train on.
    """
    root = options.root or options.work / "images"
    if options.root is not None and not root.is_dir():
        raise UserError(f"{root}: expected the folder of {options.dataset}; not there")
    reading = READERS[options.dataset](root, options)
    remarks = list(reading.remarks)
    placed = [record for record in reading.records if record.split]
    _remark(remarks, len(reading.records) - len(placed), "images are in no split, left out")
    numbered = _numbered(placed, options.dataset)
    there = _existing(numbered, reading.image_root, options.skip_missing, remarks)
    images = _with_captions(there, remarks)
    if not any(image.split == "train" for image in images):
        found = Counter(image.split for image in images)
        raise UserError(
            f"{root}: expected images with captions in the split train, found "
            + (", ".join(f"{n} in {split}" for split, n in found.items()) or "none in any split")
        )
    if not any(image.split == "val" for image in images):
        remarks.append("no image is in the split val, which decoder.train needs")
    return CaptionTable(options.dataset, reading.image_root, tuple(images)), remarks


def _remark(remarks: list[str], count: int, what: str, items: Iterable[object] = ()) -> None:
    if count:
        named = first_few(items)
        remarks.append(f"{count} {what}" + (f": {named}" if named else ""))


def _numbered(records: list[Record], dataset: str) -> list[tuple[int, Record]]:
    """Return the records in order of their ids, which are made up if the data set has none."""
    names = Counter(captions.check_file_name(record.file_name) for record in records)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise UserError(f"{dataset}: {len(twice)} images are listed twice: {first_few(twice)}")
    if all(record.id is None for record in records):
        return list(enumerate(sorted(records, key=lambda record: record.file_name), 1))
    numbered = []
    for record in records:
        if not captions.is_id(record.id):
            raise UserError(
                f"{dataset}: expected a whole number as id of {record.file_name}, "
                f"found {record.id!r}"
            )
        numbered.append((record.id, record))
    ids = Counter(image_id for image_id, _ in numbered)
    twice = [str(image_id) for image_id, count in ids.items() if count > 1]
    if twice:
        raise UserError(f"{dataset}: {len(twice)} image ids occur twice: {first_few(twice)}")
    return sorted(numbered, key=lambda pair: pair[0])


def _existing(
    numbered: list[tuple[int, Record]], image_root: Path, skip_missing: bool, remarks: list[str]
) -> list[tuple[int, Record]]:
    """Return those whose picture is there; UserError if one is not, unless `skip_missing`."""
    there, missing = [], []
    for image_id, record in numbered:
        # Path.is_file raises for a name that is too long and in a folder that may not be read.
        if os.path.isfile(image_root / record.file_name):  # noqa: PTH113
            there.append((image_id, record))
        else:
            missing.append(record.file_name)
    if missing and not skip_missing:
        raise UserError(
            f"{image_root}: {len(missing)} of {len(numbered)} pictures are not there: "
            f"{first_few(missing)}; --skip-missing leaves them out"
        )
    _remark(remarks, len(missing), "pictures are not there, left out", missing)
    return there


def _with_captions(numbered: list[tuple[int, Record]], remarks: list[str]) -> list[Image]:
    """Tokenize; leave out captions that have no word and images that have no caption."""
    images, silent, wordless = [], [], 0
    for image_id, record in tqdm(numbered, "tokenizing", unit=" images", leave=False, disable=None):
        texts = []
        for text in record.captions:
            if not isinstance(text, str):
                raise UserError(f"{record.file_name}: expected a caption as text, found {text!r}")
            # A newline or tab would break the formats that captions are written to later, an escape
            # would steer terminals; half a surrogate pair, which JSON can hold, has no UTF-8.
            text = " ".join(CONTROL.sub(" ", text).split()).encode(errors="replace").decode()
            texts.append(Caption(text, tuple(tokenize(text))))
        kept = tuple(caption for caption in texts if caption.tokens)
        wordless += len(texts) - len(kept)
        if kept:
            images.append(Image(image_id, record.file_name, str(record.split), kept))
        else:
            silent.append(record.file_name)
    _remark(remarks, wordless, "captions are empty or have no word, left out")
    _remark(remarks, len(silent), "images have no caption, left out", silent)
    return images


def caption_files(options: PrepareOptions) -> list[Path]:
    """Return the files and folders that decide what `load_table` returns.

    These are the files of text in the root and one folder below, and those folders, whose time
    of change tells that a picture came or went.
    """
    root, work = options.root, options.work.resolve()
    if root is None or not root.is_dir():
        return []
    suffixes = {".json", ".jsonl", ".csv", ".txt", ".token"}
    try:
        below = sorted(path for path in root.iterdir() if path.is_dir() and path.resolve() != work)
        files = [p for folder in (root, *below) for p in folder.iterdir() if p.suffix in suffixes]
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
    chosen = [captions_file(root, options.captions, ())] if options.captions else []
    return [root, *below, *sorted(files), *chosen]
