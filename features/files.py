"""Files that are replaced atomically, JSON, and folders."""

import errno
import glob
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from features.errors import AccessError, UserError, unreadable

# A disk answers with these that it cannot flush (network disks and FUSE, mostly for folders), or
# that a folder must not be opened. What was written is there all the same.
_CANNOT_FLUSH = {
    *(errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF),
    *(errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTTY),
}


def make_folder(path: Path) -> None:
    """Make the folder `path` and its parents where they are missing; UserError if that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file to write, which replaces `path` when the block ends.

    A reader sees the old file or the complete new one, and so does whoever comes after a crash or a
    power cut. If the block fails, the old file stays. OSError is passed on.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)  # or a power cut could undo the renaming
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def delete_temporaries(path: Path) -> None:
    """Delete the temporary files left by processes killed while `replacing` the file `path`.

    Call it only while no other process can be writing `path`.
    """
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*new"):
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush to the disk the content of a file, or the names in a folder, if the disk can do it.

    OSError, such as a full or a failing disk, is passed on.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        if error.errno in _CANNOT_FLUSH:
            return
        raise
    try:
        flush(descriptor)
    finally:
        os.close(descriptor)


def flush(descriptor: int) -> None:
    """Flush an open file or folder to the disk, if the disk can do it; see `sync`."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn OSError in the block, which reads the file `path`, into AccessError.

    A folder or a device is refused. FileNotFoundError is passed on.
    """
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise AccessError(f"{path} is not a file but a folder or a device")
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error


def is_there(path: Path) -> bool:
    """Whether there is a file or folder.

    Unlike `Path.exists` since Python 3.14, it does not say no where nobody knows.

    Raises:
        OSError: the disk or the network failed, or a folder cannot be opened.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` to `path`, atomically (see `replacing`); its folder is made if it is missing.

    Raises:
        UserError: it cannot be written, or is a folder or a device, which must not be replaced; or
            the content has a name of a file that is not UTF-8.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113
        raise UserError(f"cannot write {path}: it is not a file but a folder or a device")
    try:
        data = content.encode() if isinstance(content, str) else content
    except UnicodeEncodeError as error:
        name = error.object[max(0, error.start - 60) : error.end + 20]
        raise UserError(
            f"cannot write {path}: {name!r} is not UTF-8; rename that file or folder"
        ) from error
    make_folder(path.parent)
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON to `path`, atomically (see `write_atomically`)."""
    write_atomically(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def read_json(path: Path, made_by: str) -> Any:
    """Read a JSON file; `made_by` is the command that creates it, for the error message.

    It may be in UTF-8, UTF-16 or UTF-32, with or without a byte order mark. Half a surrogate pair,
    which JSON can hold and UTF-8 cannot, becomes a question mark.

    Raises:
        AccessError: the file cannot be read, or is a folder or a device.
        UserError: the file is missing or is not JSON.
    """
    try:
        with reading(path):
            data = path.read_bytes()
        text = data.decode(json.detect_encoding(data))
        value = json.loads(text)
        if re.search(r"\\u[dD]", text):
            value = json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
        return value
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there; create it with {made_by}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); create it again with {made_by}") from error
