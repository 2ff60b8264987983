"""WORK/pictures.json: which files the features of a work directory were computed from.

    {"7": {"file_name": "dog.jpg", "bytes": 51234, "modified": 1764331200000000000, "crc": 912559}}

By it `pipeline.extract` notices that a picture has changed, and `pipeline.prepare` that an image id
stands for another picture than before. Of `pipeline.extract --from`, which reads no pictures, only
the file names are recorded.
"""

import os
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from features.errors import UserError, first_few
from features.files import write_json
from features.store import FeatureStore
from features.store_writing import parts_folder
from pipeline import captions
from pipeline.captions import CaptionTable
from pipeline.extraction_report import previous
from pipeline.work import WorkFolder

# Pictures of one size in bytes, such as bitmaps, are told apart by what they have here.
_SAMPLES, _SAMPLE_BYTES = 3, 4096

Pictures = dict[int, dict[str, Any]]
"""By image id: the file name, its size in bytes, its time in nanoseconds, a CRC-32 of samples. The
last three may be absent together."""


def load(work: WorkFolder) -> Pictures:
    """Return what is recorded of the pictures; nothing if there is no record or a damaged one."""
    try:
        return {int(i): entry for i, entry in previous(work.pictures).items() if _is_entry(entry)}
    except ValueError:
        return {}


def save(work: WorkFolder, pictures: Pictures) -> None:
    """Record the pictures of which there are features."""
    write_json(work.pictures, {str(image_id): entry for image_id, entry in pictures.items()})


def look(table: CaptionTable, known: Pictures) -> tuple[Pictures, set[int]]:
    """Return the pictures as they are now, and the ids of those that differ from `known`.

    A file is compared by its size and samples of its content if its time differs, as it does in a
    copy. Files that cannot be read are left out.
    """
    now: Pictures = {}
    changed = set()
    for image in table.images:
        path, before = table.path(image), known.get(image.id)
        if before is not None and "crc" not in before:
            before = None  # its features were read from files
        try:
            status = path.stat()
            entry = {"file_name": image.file_name, "bytes": status.st_size}
            same = (
                before is not None
                and _are_alike(before["file_name"], image.file_name)
                and before["bytes"] == status.st_size
            )
            if before is not None and same and before["modified"] == status.st_mtime_ns:
                now[image.id] = before
                continue
            entry |= {"modified": status.st_mtime_ns, "crc": _crc(path, status.st_size)}
        except OSError:
            continue
        now[image.id] = entry
        if before is not None and not (same and before["crc"] == entry["crc"]):
            changed.add(image.id)
    return now, changed


def known_ids(work: WorkFolder) -> dict[str, int]:
    """Return the image ids that a work directory has given to pictures, by file name and by path.

    These are the ids in captions.json, and those of removed pictures that still have features;
    where their names are not recorded, under names that no picture has.
    """
    names = _names(work)
    known = {name: image_id for image_id, name in names.items()}
    with suppress(UserError, OSError):  # features of removed pictures that nothing names any more
        stored = FeatureStore(work.path / "features.h5").image_ids.tolist()
        known |= {f"\0{image_id}": image_id for image_id in stored if image_id not in names}
    if (table := _table(work)) is not None:
        root = table.root.resolve()
        known |= {str(root / image.file_name): image.id for image in table.images}
    return known


def expect_free_ids(work: WorkFolder, table: CaptionTable) -> None:
    """Check that no image of `table` has the id of another picture that has features.

    Raises:
        UserError: there are some.
    """
    store = work.path / "features.h5"
    if not (store.exists() or parts_folder(store).exists()):
        return
    before = _names(work)
    other = [i for i in table.images if not _are_alike(before.get(i.id, i.file_name), i.file_name)]
    if other:
        named = first_few(f"{i.id} is {before[i.id]} there and {i.file_name} here" for i in other)
        raise UserError(
            f"{store} has features of other pictures under the same image ids: {named}; use "
            "another --work"
        )


def _names(work: WorkFolder) -> dict[int, str]:
    names = {image_id: entry["file_name"] for image_id, entry in load(work).items()}
    table = _table(work)
    return names if table is None else names | dict(table.file_names())


def _table(work: WorkFolder) -> CaptionTable | None:
    """Return the table of captions.json; None if there is none, or a damaged one."""
    path = work.path / "captions.json"
    if not path.is_file():
        return None
    try:
        return captions.load(path)
    except UserError:
        return None


def _are_alike(one: str, other: str) -> bool:
    """Whether two file names may be of one picture, relative to a folder and to one above it."""
    return f"/{one}".endswith(f"/{other}") or f"/{other}".endswith(f"/{one}")


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("file_name"), str)
        and len({"bytes", "modified", "crc"} & entry.keys()) in (0, 3)
    )


def _crc(path: Path, size: int) -> int:
    crc = 0
    with path.open("rb") as file:
        for sample in range(_SAMPLES):
            file.seek(max(0, size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1), os.SEEK_SET)
            crc = zlib.crc32(file.read(_SAMPLE_BYTES), crc)
    return crc
