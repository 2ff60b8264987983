"""Captions that a model wrote, by image id or by file name, and how they match a caption table."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from features.commands import CAPTION
from features.errors import AccessError, UserError, first_few
from features.files import read_json, reading
from pipeline.captions import CaptionTable, is_id
from pipeline.readers.coco import as_number
from pipeline.readers.files import kind_of_file
from pipeline.readers.tables import column_key, read_table

_LISTINGS = (".csv", ".tsv", ".jsonl", ".ndjson")
_NAMES = ("file_name", "path", "image", "filename", "image_name", "image_path")


@dataclass(frozen=True)
class Results:
    """The captions in a file, in its order, by image id, by file name or by both."""

    path: Path
    by_id: dict[int, str] = field(default_factory=dict)
    by_name: dict[str, str] = field(default_factory=dict)
    """As the file spells the names. They count where both are given: the ids that pipeline.prepare
    makes depend on which pictures there are."""


def read_results(path: Path) -> Results:
    """Return the captions in a COCO results file, or in a listing of `decoder.caption --out`.

    The rows of a results file may have "file_name", with or without "image_id". An id may be a text
    that spells a number; any other text names the picture. A listing (.csv, .tsv or .jsonl) has the
    column path, file_name or image_id, and caption. Its rows of pictures without a caption have the
    reason in the column error; they are left out, and the user hears of them.

    Raises:
        AccessError: the file cannot be read.
        UserError: the file is missing or has another format, or a picture has two captions.
    """
    if path.suffix.lower() in _LISTINGS:
        return _listing(path)
    content = _list(path)
    named = [isinstance(entry, dict) and "file_name" in entry for entry in content]
    if not any(named):
        return Results(path, _by_id(content, path))
    wrong = [
        number
        for number, entry in enumerate(content, 1)
        if not (
            isinstance(entry, dict)
            and isinstance(entry.get("file_name"), str)
            and isinstance(entry.get("caption"), str)
        )
    ]
    if wrong:
        raise UserError(
            f'{path}: {len(wrong)} entries are not like {{"file_name": "dog.jpg", "caption": '
            f'"a dog"}}, two texts: number {first_few(wrong)}; the first is '
            f"{str(content[wrong[0] - 1])[:200]}"
        )
    by_name = _once(path, [(entry["file_name"], entry["caption"]) for entry in content])
    ids = [entry.get("image_id") for entry in content]
    usable = all(map(is_id, ids)) and len(set(ids)) == len(ids)
    by_id = {entry["image_id"]: entry["caption"] for entry in content} if usable else {}
    return Results(path, by_id, by_name)


def read(path: Path) -> dict[int, str]:
    """Return the captions in a COCO results file by image id, in the order of the file.

    Raises:
        UserError: the file is missing, is not JSON, is not a list of
            {"image_id": int, "caption": str}, or has two captions for an image.
    """
    return _by_id(_list(path), path)


def read_coco(path: Path, made_by: str) -> Any:
    """Return the content of a JSON file; the message names a file of another kind.

    Raises:
        AccessError, UserError: see `features.files.read_json`.
    """
    try:
        return read_json(path, made_by)
    except AccessError:
        raise
    except UserError:
        if path.exists() and (kind := kind_of_file(path)):
            raise UserError(f"{path}: expected JSON, found {kind}") from None
        raise


def numbered(entries: Iterable[Any], key: str) -> None:
    """Replace the ids of JSON objects that are text or decimals by the integers they spell."""
    for entry in entries:
        if isinstance(entry, dict) and isinstance(entry.get(key), str | float):
            entry[key] = as_number(entry[key])


def _list(path: Path) -> list[Any]:
    content = read_coco(path, CAPTION)
    if not isinstance(content, list) or not content:
        found = "an empty list" if content == [] else type(content).__name__
        raise UserError(
            f'{path}: expected a list of {{"image_id": 1, "caption": "a dog"}}, found {found}'
        )
    numbered(content, "image_id")
    for entry in content:
        if isinstance(entry, dict) and not is_id(entry.get("image_id")):
            names = [entry.get(name) for name in (*_NAMES, "image_id")]
            if name := next((name for name in names if isinstance(name, str) and name), None):
                entry["file_name"] = name
    return content


def _by_id(content: list[Any], path: Path) -> dict[int, str]:
    wrong = [number for number, entry in enumerate(content, 1) if not _is_result(entry)]
    if wrong:
        raise UserError(
            f'{path}: {len(wrong)} entries are not like {{"image_id": 1, "caption": "a dog"}}, an '
            f"integer and a text: number {first_few(wrong)}; the first is "
            f"{str(content[wrong[0] - 1])[:200]}"
        )
    counts = Counter(entry["image_id"] for entry in content)
    twice = [image for image, count in counts.items() if count > 1]
    if twice:
        raise UserError(
            f"{path}: {len(twice)} image ids have more than one caption, expected one: "
            f"{first_few(twice)}"
        )
    return {entry["image_id"]: entry["caption"] for entry in content}


def _listing(path: Path) -> Results:
    """Return the captions of a listing by the name of the picture, or by id if it has no names."""
    with reading(path):
        table = read_table(path, path.name)
    for remark in table.remarks:
        print(f"score: {remark}")
    captions: list[tuple[Any, str]] = []
    failed: list[str] = []
    for row in table.rows:
        cells = {column_key(column): _encodable(value) for column, value in row.cells.items()}
        name = next((cells[column] for column in _NAMES if cells.get(column)), None)
        name = name or as_number(cells.get("image_id"))
        if not (is_id(name) or isinstance(name, str)) or name == "" or "caption" not in cells:
            raise UserError(
                f"{path}, {row.where}: expected a picture as path, file_name or image_id and its "
                f"caption, as {CAPTION} --out writes them, found "
                f"{', '.join(row.cells)[:200] or 'nothing'}"
            )
        if cells.get("error"):
            failed.append(f"{name} ({cells['error']})")
        elif isinstance(cells["caption"], str):
            captions.append((name, cells["caption"]))
        else:
            raise UserError(
                f"{path}, {row.where}: expected the caption of {name} as a text, found "
                f"{cells['caption']!r:.80}"
            )
    if failed:
        print(f"score: {len(failed)} pictures of {path} have no caption: {first_few(failed)}")
    if not captions:
        raise UserError(f"{path}: expected captions of pictures, found none")
    if all(is_id(name) for name, _ in captions):
        return Results(path, _by_id([{"image_id": i, "caption": c} for i, c in captions], path))
    return Results(path, by_name=_once(path, [(str(name), text) for name, text in captions]))


def _encodable(value: Any) -> Any:
    """Replace half surrogate pairs, which JSON can hold and UTF-8 cannot, as `read_json` does."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def _once(path: Path, captions: list[tuple[str, str]]) -> dict[str, str]:
    """Return the captions by name; UserError if a name occurs twice."""
    counts = Counter(name for name, _ in captions)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise UserError(
            f"{path}: {len(twice)} pictures have more than one caption, expected one: "
            f"{first_few(twice)}"
        )
    return dict(captions)


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
    names: Mapping[int, str] | None = None,
) -> dict[int, list[str]]:
    """Return the reference captions, by image id, of the images in `results`.

    Args:
        results: captions by image id.
        references: the reference captions of each image.
        where: what these images are, for messages.
        path: the file of the results.
        partial: accept results that lack images.
        names: the file name of each image, to name it by in messages; by default its id.

    Raises:
        UserError: `results` has images that are not in `references` or have no reference captions,
            or, unless `partial` is set, lacks some.
    """
    kind = "image ids" if names is None else "pictures"

    def named(images: list[int]) -> str:
        return first_few(images if names is None else (names.get(i, i) for i in images))

    strange = [image for image in results if image not in references]
    if strange:
        raise UserError(
            f"{path}: {len(strange)} of {len(results)} {kind} are not in {where}: {named(strange)}"
        )
    missing = [image for image in references if image not in results]
    if missing and not partial:
        raise UserError(
            f"{path}: {len(missing)} of the {len(references)} images of {where} have no "
            f"caption: {named(missing)}; caption them, or score only the others with --partial"
        )
    bare = [image for image in results if not references[image]]
    if bare:
        raise UserError(
            f"{path}: {len(bare)} images have no reference caption to score against: {named(bare)}"
        )
    return {image: captions for image, captions in references.items() if image in results}
