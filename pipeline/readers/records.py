"""What a reader returns: records of pictures, their splits and captions, nothing checked yet."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from features.errors import UserError

# Split names in published data sets. restval is the part of COCO's validation set that Karpathy and
# Fei-Fei (2015) left over; everyone trains on it.
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
    """One picture as its data set describes it.

    `split` is None if the data set puts the picture in no split, `id` is None if the data set does
    not number its pictures.
    """

    file_name: str
    split: str | None
    captions: tuple[str, ...]
    id: int | None = None


@dataclass(frozen=True)
class Reading:
    """The records of a data set, the folder of its pictures, and remarks for the user."""

    image_root: Path
    records: list[Record]
    remarks: list[str] = field(default_factory=list)


def split_name(name: str) -> str:
    """Return train, val or test for the `name` that a data set gives to a split.

    Raises:
        UserError: the name is unknown.
    """
    known = _SPLIT_NAMES.get(name.strip().lower())
    if known is None:
        raise UserError(f"unknown split {name!r}; expected train, val or test")
    return known


def merge(
    captions: Iterable[tuple[str, str]], splits: Mapping[str, str | None] | None = None
) -> list[Record]:
    """Return one record per picture, in order of first mention.

    Args:
        captions: (file name, caption) pairs.
        splits: the split of each file name. A picture that is only here has no captions; one that
            is missing here is in no split.
    """
    splits = splits or {}
    texts: dict[str, list[str]] = {name: [] for name in splits}
    for file_name, caption in captions:
        texts.setdefault(file_name, []).append(caption)
    return [Record(name, splits.get(name), tuple(text)) for name, text in texts.items()]


def hash_position(name: str, seed: int) -> float:
    """Return a number for a picture, uniform in [0, 1) and the same on every machine."""
    digest = sha256(f"{seed}/{name}".encode(errors="replace")).digest()
    return int.from_bytes(digest[:8]) / 2**64


def split_by_hash(records: list[Record], seed: int, source: Path) -> list[Record]:
    """Put each record into train (80 %), val (10 %) or test (10 %) by a hash of its file name.

    A picture keeps its split when others are added or removed. Only if train or val would be empty
    is one picture moved there.

    Raises:
        UserError: there are fewer than two pictures; the message names the file `source`.
    """
    if len(records) < 2:
        raise UserError(f"{source}: expected 2 pictures or more to split, found {len(records)}")
    position = {record.file_name: hash_position(record.file_name, seed) for record in records}
    splits = {
        name: "val" if x < 0.1 else "test" if x < 0.2 else "train" for name, x in position.items()
    }
    if "val" not in splits.values():
        splits[min(position, key=position.__getitem__)] = "val"
    if "train" not in splits.values():
        splits[max(position, key=position.__getitem__)] = "train"
    return [replace(record, split=splits[record.file_name]) for record in records]
