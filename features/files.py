"""Files written whole or not at all, JSON, and folders."""

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from features.errors import UserError


def make_folder(path: Path) -> None:
    """Make the folder `path` and those above it, unless it is there; UserError if it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror}") from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` so that a reader or a crash sees the old file or the new, whole.

    Raises:
        UserError: it cannot be written, or is a folder or a device, which must not be replaced.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113
        raise UserError(f"cannot write {path}: it is not a file but a folder or a device")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    data = content.encode() if isinstance(content, str) else content
    make_folder(path.parent)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Bring the new name of a file to the disk, too: a power cut must not undo its renaming."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON to `path`, atomically (see `write_atomically`)."""
    write_atomically(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def read_json(path: Path, made_by: str) -> Any:
    """Read a JSON file; `made_by` names the command that makes it, for the error message.

    Half a surrogate pair, which JSON can hold and nothing can write, becomes a question mark.

    Raises:
        UserError: the file is missing, is no plain file or is not JSON.
    """
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise UserError(f"{path} is not a file but a folder or a device")
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
        if re.search(r"\\u[dD]", text):
            value = json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
        return value
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there; {made_by} makes it") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); {made_by} makes it anew") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
