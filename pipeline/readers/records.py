"""What every reader of a data set returns, and what the readers share."""

import codecs
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from features.errors import UserError, first_few

# Names of splits met in published data sets; restval is the part of COCO's val that Karpathy and
# Fei-Fei (2015) left over, which everyone trains on.
_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "restval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Record:
    """One picture as its data set describes it, nothing checked yet.

    `split` is None for a picture that the data set has put in no split, `id` is None where the
    data set numbers no pictures.
    """

    file_name: str
    split: str | None
    captions: tuple[str, ...]
    id: int | None = None


@dataclass(frozen=True)
class Reading:
    """What a reader found: the folder that file names are relative to, records and remarks."""

    image_root: Path
    records: list[Record]
    remarks: list[str] = field(default_factory=list)


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, with or without a byte order mark, or of UTF-16 with one.

    Raises:
        UserError: the file is missing, unreadable or neither.
    """
    try:
        content = path.read_bytes()
        if content.startswith(b"PK\3\4"):
            raise UserError(
                f"{path} is no text but an archive or a spreadsheet; save it as CSV in UTF-8"
            )
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}, line {line}: expected UTF-8, found the byte "
            f"0x{error.object[error.start]:02x}; convert it, as in: iconv -f cp1252 -t utf-8"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        UserError: as `read_text`, or the file is not JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected JSON: {error}") from error


def split_name(name: str) -> str:
    """Return train, val or test for the `name` that a data set gives to a split.

    Raises:
        UserError: the name is none that is known.
    """
    known = _SPLIT_NAMES.get(name.strip().lower())
    if known is None:
        raise UserError(f"unknown split {name!r}; expected train, val or test")
    return known


def merge(
    captions: Iterable[tuple[str, str]], splits: Mapping[str, str | None] | None = None
) -> list[Record]:
    """Return a record for each picture, in order of first mention.

    Args:
        captions: (file name, caption) pairs.
        splits: the split of each file name; one named only here has no captions, one not named
            here is in no split.
    """
    splits = splits or {}
    texts: dict[str, list[str]] = {name: [] for name in splits}
    for file_name, caption in captions:
        texts.setdefault(file_name, []).append(caption)
    return [Record(name, splits.get(name), tuple(text)) for name, text in texts.items()]


def split_by_hash(records: list[Record], seed: int, source: Path) -> list[Record]:
    """Put each record into train (80 %), val (10 %) or test (10 %) by a hash of its file name.

    A picture keeps its split when others are added or removed; only where train or val would be
    empty, one picture moves there.

    Raises:
        UserError: there are fewer than two pictures; `source` is the file to name.
    """
    if len(records) < 2:
        raise UserError(f"{source}: expected 2 pictures or more to split, found {len(records)}")
    # A number in [0, 1) for each picture, as even as chance and the same on every machine.
    place = {}
    for record in records:
        digest = sha256(f"{seed}/{record.file_name}".encode(errors="replace")).digest()
        place[record.file_name] = int.from_bytes(digest[:8]) / 2**64
    chosen = {n: "val" if x < 0.1 else "test" if x < 0.2 else "train" for n, x in place.items()}
    if "val" not in chosen.values():
        chosen[min(place, key=place.__getitem__)] = "val"
    if "train" not in chosen.values():
        chosen[max(place, key=place.__getitem__)] = "train"
    return [replace(record, split=chosen[record.file_name]) for record in records]


def captions_file(root: Path, chosen: Path | None, patterns: Iterable[str]) -> Path:
    """Return the `chosen` file, or the only one in `root` that matches one of `patterns`.

    Raises:
        UserError: the root is not there, or no file matches, or several do.
    """
    if chosen is not None:
        return chosen if chosen.exists() else root / chosen
    found = sorted(path for pattern in patterns for path in root.glob(pattern))
    if len(found) != 1:
        listed = first_few(path.name for path in found) or "none"
        raise UserError(
            f"{root}: expected one {' or '.join(patterns)}, found {listed}; name it with --captions"
        )
    return found[0]


def find(root: Path, names: Iterable[str]) -> Path | None:
    """Return the first of `names`, files or folders, that is in `root` or one folder below."""
    for name in names:
        for path in (root / name, *sorted(root.glob(f"*/{name}"))):
            if path.exists():
                return path
    return None
