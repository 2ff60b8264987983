"""Reference captions to score against: a split of a work directory, or any COCO captions file."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.result_names import captions_by_id
from evaluation.results import Results, match, numbered, read_coco, split_of
from features.commands import PREPARE
from features.errors import UserError, first_few
from pipeline import captions
from pipeline.caption_database import open_database
from pipeline.captions import CaptionTable, Image, is_id

_EXPECTED = "a COCO captions file, such as captions_val2014.json or WORK/captions.json"


@dataclass(frozen=True)
class References:
    """The reference captions of scored images, and the captions to score."""

    name: str
    """The split, or what names a COCO captions file: val2014 for captions_val2014.json."""
    captions: dict[int, list[str]]
    """By image id, of the images that have a result."""
    results: dict[int, str]
    """The caption to score of each of these images."""
    images: int
    """Number of images of the split or the file, with and without a result."""
    training: Iterable[str]
    """The captions of the training split, to be read once; none if the file has no splits."""
    sources: dict[int, str] = field(default_factory=dict)
    """The data set that each of these images came from; empty if the file has no splits."""


def choose(path: Path, results: Results, split: str | None, partial: bool) -> References:
    """Read the captions file at `path`, and choose the images to score.

    These are the images in `results`. In the captions.json of a work directory they must be all
    images of a split, unless `partial` is set.

    Args:
        path: a captions.json or captions.db of pipeline.prepare, or any COCO captions file.
        results: the captions to score.
        split: of the work directory; by default the one that the results belong to.
        partial: accept that images of the split have no result.

    Raises:
        UserError: the file is not in COCO's format; `split` is given but the file has no splits;
            or the results do not belong to the file.
    """
    table: CaptionTable | None = None
    if path.suffix == ".db":
        table = open_database(path)
    else:
        content = read_coco(path, f"{PREPARE}, or name {_EXPECTED}")
        if _is_of_work_directory(content):
            table = captions.parse(content, path)
    if table is not None:
        written = results.by_id
        if results.by_name:
            written = captions_by_id(results, table.file_names, str(path))
        if split is None:
            split = split_of(written, table, results.path)
        else:
            written = _of_split(written, table, split)
        images = table.split(split)
        every = captions_of(images)
        names = {image.id: image.file_name for image in images} if results.by_name else None
        chosen = match(written, every, f"the split {split}", results.path, partial, names)
        train = table.split("train") if table.has_split("train") else ()
        training = (caption.text for image in train for caption in image.captions)
        sources = {image.id: image.source for image in table.with_ids(chosen)}
        return References(split, chosen, written, len(every), training, sources)
    for key, own in (("images", "id"), ("annotations", "image_id")):
        if isinstance(content, dict) and isinstance(content.get(key), list):
            numbered(content[key], own)
    every = _coco(content, path)
    if split is not None:
        raise UserError(
            f"{path} is not the captions.json of a work directory, so it has no split {split!r}; "
            "leave out --split: the images of the results are scored"
        )
    written = _by_id_of_coco(results, content, path)
    chosen = match(written, every, str(path), results.path, partial=True)
    name = path.stem.removeprefix("captions_") or path.stem
    return References(name, chosen, written, len(every), [])


def _of_split(written: dict[int, str], table: CaptionTable, split: str) -> dict[int, str]:
    """Return the captions without those of other splits, unless that would be all of them."""
    others = {image.id for image in table.with_ids(written) if image.split != split}
    if not others or others == written.keys():
        return written
    print(f"score: {len(others)} captions of images in other splits are left out")
    return {image: text for image, text in written.items() if image not in others}


def _by_id_of_coco(results: Results, content: Any, path: Path) -> dict[int, str]:
    """Return the captions by image id, which need file names of a COCO file if they have no ids."""
    named = [
        (image["id"], image["file_name"])
        for image in content.get("images") or []
        if isinstance(image.get("file_name"), str)
    ]
    if not results.by_name or (not named and results.by_id):
        return results.by_id
    if not named:
        raise UserError(
            f"{path} names no image files, so {results.path} needs the image_id of each caption"
        )
    return captions_by_id(results, lambda: named, str(path))


def captions_of(images: Iterable[Image]) -> dict[int, list[str]]:
    """Return the texts of the reference captions of `images` by image id."""
    return {image.id: [caption.text for caption in image.captions] for image in images}


def _is_of_work_directory(content: object) -> bool:
    """Whether `content` has what pipeline.prepare adds to COCO's format."""
    if not isinstance(content, dict):
        return False
    info = content.get("info")
    images, annotations = content.get("images"), content.get("annotations")
    return (isinstance(info, dict) and "image_root" in info) or (
        _first_has(images, "split") and _first_has(annotations, "tokens")
    )


def _first_has(entries: object, key: str) -> bool:
    return (
        isinstance(entries, list)
        and len(entries) > 0
        and isinstance(entries[0], dict)
        and key in entries[0]
    )


def _coco(content: object, path: Path) -> dict[int, list[str]]:
    """Return the captions of each image of a COCO captions file; see Chen et al. 2015.

    An annotation that occurs twice, with the same id, counts once, and the user hears of it.

    Raises:
        UserError: the file has another format.
    """
    annotations = _annotations(content, path)
    assert isinstance(content, dict)
    # Some files have no "images": those with captions are then all there are.
    every: dict[int, list[str]] = {
        image: [] for image in _image_ids(content.get("images") or [], path)
    }
    seen: set[tuple[object, int, str]] = set()
    repeated = 0
    for entry in annotations:
        own, image, text = entry.get("id"), entry["image_id"], entry["caption"]
        if isinstance(own, int | str):
            if (own, image, text) in seen:
                repeated += 1
                continue
            seen.add((own, image, text))
        every.setdefault(image, []).append(text)
    if repeated:
        print(f"score: {repeated:,} annotations occur twice in {path} and are counted once")
    return every


def _annotations(content: object, path: Path) -> list[dict[str, Any]]:
    if isinstance(content, list):
        hint = "; did you swap --captions and --results?" if _first_has(content, "caption") else ""
        raise UserError(f"{path}: expected {_EXPECTED}, found a list{hint}")
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected {_EXPECTED}, found {type(content).__name__}")
    if _first_has(content.get("images"), "sentences"):
        raise UserError(
            f"{path}: expected {_EXPECTED}, found a file of Karpathy and Fei-Fei; make a work "
            f"directory of it with {PREPARE} and score against its captions.json"
        )
    annotations = content.get("annotations")
    if not isinstance(annotations, list) or not annotations:
        raise UserError(
            f"{path} has no annotations, so there are no captions to score against (those of "
            f"COCO's test images are not public); expected {_EXPECTED}"
        )
    wrong = [number for number, entry in enumerate(annotations, 1) if not _is_caption(entry)]
    if wrong:
        first = annotations[wrong[0] - 1]
        found = str(first)[:200]
        if isinstance(first, dict) and "caption" not in first:
            found = f"no caption but {', '.join(map(str, first))[:200]}"
        raise UserError(
            f'{path}: {len(wrong)} annotations are not like {{"image_id": 1, "caption": "a dog"}}, '
            f"an integer and a text: number {first_few(wrong)}; the first has {found}"
        )
    return annotations


def _is_caption(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and is_id(entry.get("image_id"))
        and isinstance(entry.get("caption"), str)
    )


def _image_ids(images: object, path: Path) -> Iterator[int]:
    if not isinstance(images, list):
        raise UserError(f'{path}: expected a list of "images", found {type(images).__name__}')
    for number, image in enumerate(images, 1):
        if not isinstance(image, dict) or not is_id(image.get("id")):
            raise UserError(
                f'{path}: expected images like {{"id": 1, "file_name": "1.jpg"}} with an integer '
                f"id, found number {number}: {str(image)[:200]}"
            )
        yield image["id"]
