"""The captions of a picture in a shard: in a .txt or .json beside it, or in the row of a list."""

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from features.shards import ShardError

TEXTS = ("txt", "caption", "json")
"""Extensions of the files that hold captions."""
OTHER_TEXT = "text file not named as a picture"


def extension_of(name: str) -> str:
    """Return the suffix of a file name, in lower case and without its dot."""
    return os.path.splitext(name)[1][1:].lower()  # noqa: PTH122


def decoded(name: str, data: bytes) -> str:
    """Decode the content of a caption file; ShardError if it is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ShardError(f"{name!r} is not UTF-8 ({error.reason})") from error


def captions_in(texts: Mapping[str, str], json_name: str) -> list[str]:
    """Return the captions in the texts of a picture, which are named by their extensions.

    They are each line of a .txt or .caption, and "caption" and "captions" of a .json.
    """
    described: list[str] = []
    copy = ""
    if "json" in texts:
        try:
            value = json.loads(texts["json"])
        except (ValueError, RecursionError) as error:
            raise ShardError(f"{json_name!r} is not JSON ({error})") from error
        if not isinstance(value, dict):
            raise ShardError(f"{json_name!r}: expected a JSON object, found {type(value).__name__}")
        for name in ("caption", "captions"):
            described += caption_texts(value.get(name), repr(json_name))
        copy = str(value.get("caption")).strip()  # img2dataset writes this into the .txt
    lines: list[str] = []
    for kind in ("txt", "caption"):
        if (text := texts.get(kind, "").strip()) != copy:
            lines += caption_texts(re.split(r"[\r\n]+", text), kind)
    return list(dict.fromkeys([*lines, *described]))


def caption_texts(value: object, where: str) -> list[str]:
    """Return the captions in a value of a .json or a list: a text, several, or none.

    Args:
        value: the value.
        where: where it stands, for the error.

    Raises:
        ShardError: it is something else.
    """
    texts: list[Any] = value if isinstance(value, list) else [value]
    # pandas writes a missing text as NaN, which differs from itself.
    texts = [text for text in texts if text is not None and text == text]
    if not all(isinstance(text, str) for text in texts):
        raise ShardError(f"{where}: expected captions as text, found {quoted(value)}")
    # Half a surrogate pair, which JSON can hold and UTF-8 cannot, becomes a question mark.
    clean = (text.encode(errors="replace").decode().strip() for text in texts)
    return [text for text in clean if text]


def quoted(value: object) -> str:
    """Return a value of a strange type for an error, in a hundred characters at most."""
    return "nothing" if value is None else repr(str(value)[:100])
