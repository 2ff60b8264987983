"""Errors of opening and reading a store: of access, or of the file's content."""

import os
import re
from pathlib import Path

from features.commands import EXTRACT
from features.errors import AccessError, UserError, unreadable


def opening_error(path: Path, descriptor: int, size: int, error: Exception) -> UserError:
    """Return what an exception of h5py means: an error of access, or one of the content."""
    why = " ".join(str(error).split())  # HDF5's messages have line breaks
    number = getattr(error, "errno", None) or errno_in(why)
    if number:
        return unreadable(path, OSError(number, os.strerror(number)))
    if "already open for" in why:  # a mark in the file, which a killed program leaves there
        return AccessError(
            f"{path} is open for writing in another program, or was when that program was killed; "
            "close it there; if no program has it open, remove the mark with "
            f"h5clear --status {path} (a tool of HDF5)"
        )
    try:  # the file is blamed only if it can be read
        for start in range(0, size, max(1, size // 8)):
            os.pread(descriptor, 4096, start)
    except OSError as failure:
        return unreadable(path, failure)
    return UserError(
        f"{path} is not a feature store, or is damaged ({why}); delete it, or move it away if it "
        f"is not ours, and run {EXTRACT} again"
    )


def replaced_error(path: Path) -> UserError:
    """Return the error of a store that was replaced while it was read."""
    return UserError(f"{path} was replaced while it was read; run the same command again")


def read_bytes(descriptor: int, start: int, count: int) -> bytes:
    """Read `count` bytes of an open file from the offset `start`.

    Raises:
        OSError: the file cannot be read now.
        ValueError: the file ends before that.
    """
    data = os.pread(descriptor, count, start)
    while len(data) < count:  # a network disk may return less than was asked for
        more = os.pread(descriptor, count - len(data), start + len(data))
        if not more:
            raise ValueError("the file has become shorter")
        data += more
    return data


def errno_in(message: str) -> int | None:
    """Return the error number that HDF5 wrote into a message, None if there is none."""
    number = re.search(r"errno = (\d+)", message)
    return int(number[1]) if number else None
