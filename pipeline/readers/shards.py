"""Reader of the captions that `pipeline.extract --shards` writes beside the store of each shard.

    {"id": 7, "key": "000000007", "file_name": "000000007.jpg", "captions": ["A dog runs."]}

`SHARD.jsonl` has such a line for each row of `SHARD.h5`, in the same order. A picture that could
not be read has "error", the reason. "split" (train, val, test, or null for none) may be added.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from features.commands import EXTRACT
from features.errors import UserError, first_few
from features.files import reading
from features.store import STORED, FeatureStore
from pipeline.captions import check_file_name, is_id
from pipeline.readers.records import split_name

_NEEDED = ("id", "key", "file_name", "captions")
_OPTIONAL = ("error", "split")
_LONGEST = 2**20  # bytes of a line


class Line(NamedTuple):
    """One picture of a shard."""

    id: int
    key: str
    file_name: str
    texts: list[Any]
    """Its captions, not checked yet."""
    split: str | None
    """train, val or test; an empty string for none of them; None if the line does not say."""
    failed: bool


def captions_of(store: Path) -> Path:
    """Return the file of the captions of a shard.

    Raises:
        UserError: there is none.
    """
    path = store.with_suffix(".jsonl")
    if not path.is_file():
        raise UserError(
            f"{path} is not there: it has the captions of {store.name}, and {EXTRACT} --shards "
            "writes both; move the store elsewhere, or extract its shard again"
        )
    return path


def count_lines(path: Path) -> int:
    """Return the number of lines of a file.

    Raises:
        UserError: it cannot be read.
    """
    with reading(path), path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))


def read_shard(store: FeatureStore) -> Iterator[Line]:
    """Yield the line of each row of a store.

    Raises:
        UserError: a line is not understood, or the file does not belong to the store; the message
            names the file and the line.
    """
    path = captions_of(store.path)
    rows = 0
    with reading(path), path.open("rb") as file:
        for row, text in enumerate(iter(lambda: file.readline(_LONGEST + 1), b"")):
            where = f"{path}, line {row + 1}"
            line = _parsed(text, where)
            if row >= len(store) or store.image_ids[row] != line.id:
                there = f"image {store.image_ids[row]}" if row < len(store) else "no such row"
                raise UserError(
                    f"{where} is image {line.id}, but row {row} of {store.path} is {there}; the "
                    f"two do not belong together: extract the shard again"
                )
            if line.failed != (store.status[row] != STORED):
                raise UserError(
                    f"{where}: expected an error exactly if the features of image {line.id} are "
                    f"not in {store.path}; extract the shard again"
                )
            rows = row + 1
            yield line
    if rows < len(store):
        raise UserError(
            f"{path} has {rows} lines, {store.path} {len(store)} rows; the two do not belong "
            "together: extract the shard again"
        )


def _parsed(text: bytes, where: str) -> Line:
    if len(text) > _LONGEST:
        raise UserError(f"{where}: expected at most {_LONGEST:,} bytes, found more")
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: expected a JSON object ({error})") from error
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected a JSON object, found {type(entry).__name__}")
    absent = [name for name in _NEEDED if name not in entry]
    strange = [name for name in entry if name not in (*_NEEDED, *_OPTIONAL)]
    if absent or strange:
        found = f"no {first_few(absent)}" if absent else f"also {first_few(map(repr, strange))}"
        raise UserError(
            f"{where}: expected {', '.join(_NEEDED)} and perhaps {' or '.join(_OPTIONAL)}, found "
            f"{found}"
        )
    key, texts, split = entry["key"], entry["captions"], entry.get("split", None)
    if not is_id(entry["id"]):
        raise UserError(f"{where}: expected an integer of 63 bits as id, found {entry['id']!r:.80}")
    if not isinstance(key, str) or not key or any("\ud800" <= c <= "\udfff" for c in key):
        raise UserError(f"{where}: expected a text as key, found {key!r:.80}")
    if not isinstance(texts, list):
        raise UserError(f"{where}: expected a list of captions, found {texts!r:.80}")
    if not isinstance(split, str | None):
        raise UserError(f"{where}: expected the name of a split, found {split!r:.80}")
    try:
        name = check_file_name(entry["file_name"])
        if "split" in entry:
            split = split_name(split) if split else ""
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return Line(entry["id"], key, name, texts, split, bool(entry.get("error")))
