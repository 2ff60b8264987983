"""Captions that a model wrote, in COCO results files, and how they match a caption table."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from features.commands import CAPTION
from features.errors import UserError, first_few
from features.files import read_json
from pipeline.captions import CaptionTable, is_id


def read(path: Path) -> dict[int, str]:
    """Return the captions in a COCO results file by image id, in the order of the file.

    Raises:
        UserError: the file is missing, is not JSON, is not a list of
            {"image_id": int, "caption": str}, or has two captions for an image.
    """
    content = read_json(path, CAPTION)
    if not isinstance(content, list) or not content:
        found = "an empty list" if content == [] else type(content).__name__
        raise UserError(
            f'{path}: expected a list of {{"image_id": 1, "caption": "a dog"}}, found {found}'
        )
    wrong = [number for number, entry in enumerate(content, 1) if not _is_result(entry)]
    if wrong:
        quoted = any(isinstance(e, dict) and type(e.get("image_id")) is str for e in content)
        hint = "; an id in quotes is text: write it without quotes" if quoted else ""
        raise UserError(
            f'{path}: {len(wrong)} entries are not like {{"image_id": 1, "caption": "a dog"}}, an '
            f"integer and a text: number {first_few(wrong)}; the first is "
            f"{str(content[wrong[0] - 1])[:200]}{hint}"
        )
    counts = Counter(entry["image_id"] for entry in content)
    twice = [image for image, count in counts.items() if count > 1]
    if twice:
        raise UserError(
            f"{path}: {len(twice)} image ids have more than one caption, expected one: "
            f"{first_few(twice)}"
        )
    return {entry["image_id"]: entry["caption"] for entry in content}


def _is_result(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and is_id(entry.get("image_id"))
        and isinstance(entry.get("caption"), str)
    )


def split_of(results: dict[int, str], table: CaptionTable, path: Path) -> str:
    """Return the split that the captions in `results` (read from `path`) belong to.

    Raises:
        UserError: none of the images is in the table, or they belong to more than one split.
    """
    counts = Counter(image.split for image in table.with_ids(results))
    if not counts:
        raise UserError(
            f"{path}: none of its {len(results)} image ids ({first_few(results)}) is in the "
            f"caption table of {table.dataset}; does it belong to another data set?"
        )
    if len(counts) > 1:
        there = ", ".join(f"{split} ({count})" for split, count in counts.items())
        raise UserError(
            f"{path} has captions of more than one split, {there}; choose one with --split"
        )
    return next(iter(counts))


def match(
    results: dict[int, str],
    references: Mapping[int, list[str]],
    where: str,
    path: Path,
    partial: bool,
) -> dict[int, list[str]]:
    """Return the reference captions, by image id, of the images in `results`.

    Args:
        results: captions by image id.
        references: the reference captions of each image.
        where: what these images are, for messages.
        path: the file of the results.
        partial: accept results that lack images.

    Raises:
        UserError: `results` has images that are not in `references` or have no reference captions,
            or, unless `partial` is set, lacks some.
    """
    strange = [image for image in results if image not in references]
    if strange:
        raise UserError(
            f"{path}: {len(strange)} of {len(results)} image ids are not in {where}: "
            f"{first_few(strange)}"
        )
    missing = [image for image in references if image not in results]
    if missing and not partial:
        raise UserError(
            f"{path}: {len(missing)} of the {len(references)} images of {where} have no "
            f"caption: {first_few(missing)}; caption them, or score only the others with --partial"
        )
    bare = [image for image in results if not references[image]]
    if bare:
        raise UserError(
            f"{path}: {len(bare)} images have no reference caption to score against: "
            f"{first_few(bare)}"
        )
    return {image: captions for image, captions in references.items() if image in results}
