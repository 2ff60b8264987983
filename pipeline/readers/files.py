"""Finding and reading the files of a data set."""

import codecs
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from features.errors import UserError, first_few


def find(root: Path, names: Iterable[str]) -> Path | None:
    """Return the first of `names`, files or folders, that is in `root` or one folder below."""
    for name in names:
        for path in (root / name, *sorted(root.glob(f"*/{name}"))):
            if path.exists():
                return path
    return None


def captions_file(root: Path, chosen: Path | None, patterns: Iterable[str]) -> Path:
    """Return the `chosen` file, or the only file in `root` that matches one of `patterns`.

    Raises:
        UserError: no file was chosen, and none or more than one matches.
    """
    if chosen is not None:
        return chosen if chosen.exists() else root / chosen
    matching = sorted(path for pattern in patterns for path in root.glob(pattern))
    if len(matching) != 1:
        listed = first_few(path.name for path in matching) or "none"
        raise UserError(
            f"{root}: expected one {' or '.join(patterns)}, found {listed}; name it with --captions"
        )
    return matching[0]


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8 (with or without byte order mark) or UTF-16 (with one).

    Raises:
        UserError: the file is missing, is unreadable, or has another encoding.
    """
    try:
        content = path.read_bytes()
        if content.startswith(b"PK\3\4"):
            raise UserError(
                f"{path} is not text but an archive or a spreadsheet; save it as CSV in UTF-8"
            )
        utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}, line {line}: expected UTF-8, found the byte "
            f"0x{error.object[error.start]:02x}; convert it, for example with "
            "iconv -f cp1252 -t utf-8"
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
