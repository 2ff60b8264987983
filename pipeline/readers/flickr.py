"""Readers of Flickr8k and Flickr30k, in the layouts in which they are distributed."""

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from features.errors import UserError
from pipeline.options import PrepareOptions
from pipeline.readers.columns import captions_of, choose_columns, described, image_of
from pipeline.readers.files import find, read_text
from pipeline.readers.karpathy import read_karpathy_json
from pipeline.readers.records import Reading, merge, split_by_hash
from pipeline.readers.tables import check_swallowed, read_table

_FLICKR8K_SPLITS = {
    "train": "Flickr_8k.trainImages.txt",
    "val": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}
# The official release has captions for this file name but no such picture.
_NOT_A_PICTURE = "2258277193_586949ec62.jpg.1"


def read_flickr8k(root: Path, options: PrepareOptions) -> Reading:
    """Read Flickr8k: the official release, or the one on Kaggle (Images/, captions.txt).

    The split lists may be incomplete or missing; `_read` says what replaces them.

    Source: M. Hodosh, P. Young, J. Hockenmaier, "Framing Image Description as a Ranking Task",
    JAIR 2013.
    """
    return _read(
        root,
        options,
        images=("Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images"),
        captions=("Flickr8k.token.txt", "captions.txt"),
        karpathy="dataset_flickr8k.json",
        lists=_FLICKR8K_SPLITS,
    )


def read_flickr30k(root: Path, options: PrepareOptions) -> Reading:
    """Read Flickr30k: results_20130124.token and flickr30k-images/, or what Kaggle distributes.

    Kaggle's results.csv has the columns image_name, comment_number and comment, separated by bars.

    Source: P. Young, A. Lai, M. Hodosh, J. Hockenmaier, "From image descriptions to visual
    denotations", TACL 2014.
    """
    return _read(
        root,
        options,
        images=("flickr30k-images", "flickr30k_images", "Images", "images"),
        captions=("results_20130124.token", "results.csv", "captions.txt"),
        karpathy="dataset_flickr30k.json",
        lists={},
    )


def _read(
    root: Path,
    options: PrepareOptions,
    images: tuple[str, ...],
    captions: tuple[str, ...],
    karpathy: str,
    lists: dict[str, str],
) -> Reading:
    """Read one of the two data sets.

    Splits come from `lists`; without those, from `karpathy`; without that, from a hash.
    """
    image_root = find(root, images)
    if image_root is None:
        raise UserError(
            f"{root}: expected the pictures of {options.dataset} in one of the folders "
            f"{', '.join(images)}, found none"
        )
    while (image_root / image_root.name).is_dir():  # archives that hold a folder of their own name
        image_root /= image_root.name
    splits: dict[str, str | None] = {}
    for split, list_name in lists.items():
        path = find(root, (list_name,))
        for name in read_text(path).split() if path else ():
            if splits.setdefault(name, split) != split:
                raise UserError(f"{path}: {name} is also in the split {splits[name]}")
    splits.pop(_NOT_A_PICTURE, None)
    karpathy_file = find(root, (karpathy,))
    if not splits and karpathy_file:
        return read_karpathy_json(karpathy_file, image_root)

    caption_file = find(root, captions)
    if caption_file is None:
        raise UserError(
            f"{root}: expected the captions of {options.dataset} in "
            f"{' or '.join((*captions, karpathy))}, there or one folder below, found none"
        )
    pairs, remarks = _pairs(caption_file)
    records = merge(((name, text) for name, text in pairs if name != _NOT_A_PICTURE), splits)
    if splits:
        return Reading(image_root, records, remarks)
    return Reading(
        image_root,
        split_by_hash(records, options.seed, caption_file),
        [
            *remarks,
            f"no split lists: split by file name 80:10:10 with --seed {options.seed}; for the "
            f"published split, add {' or '.join((*lists.values(), karpathy))}",
        ],
    )


def _pairs(path: Path) -> tuple[Iterable[tuple[str, str]], list[str]]:
    """Return the (file name, caption) pairs of a file in any of its three formats, and remarks."""
    if path.name not in ("captions.txt", "results.csv"):
        return _token_lines(path), []
    if read_text(path).partition("\n")[0].strip() == "image,caption":
        return _kaggle_rows(path), []
    table = read_table(path, path.name)
    columns = choose_columns(table, None)
    pairs = [
        (image_of(row, columns, path), text)
        for row in table.rows
        for text in captions_of(row, columns, path)
    ]
    return pairs, [described(table, columns, len(pairs)), *table.remarks]


def _token_lines(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        key, tab, caption = line.partition("\t")
        name, sharp, _ = key.rpartition("#")
        if not tab or not sharp:
            raise UserError(
                f"{path}, line {number}: expected FILE#NUMBER, a tab and a caption, found {line!r}"
            )
        yield name, caption


def _kaggle_rows(path: Path) -> Iterator[tuple[str, str]]:
    rows, end = csv.reader(io.StringIO(read_text(path))), 0
    try:
        for row in rows:
            first, end = end + 1, rows.line_num
            check_swallowed(path, first, row, ",")
            if row and row != ["image", "caption"]:
                # An unquoted caption with commas is read as more than one field.
                yield row[0], ",".join(row[1:])
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}: {error}") from error
