"""Temporary folders that are deleted even if their process was killed, by the next one."""

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from features.errors import UserError
from features.locks import locked

_PREFIX = "caption-pipeline-"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
ADVICE = "set TMPDIR to a folder on a larger disk, or make smaller shards"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a temporary folder on the disk of TMPDIR for the duration of the block.

    Raises:
        UserError: it cannot be made, or its disk is full.
    """
    _delete_left_over()
    folder = Path(tempfile.gettempdir()) / f"{_PREFIX}{os.getuid()}-{uuid.uuid4().hex}"
    lock = folder.with_suffix(".lock")
    try:
        with locked(lock, f"{lock} is locked"):
            folder.mkdir(0o700)
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                lock.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in _FULL:
            raise UserError(f"cannot write to {folder}: {error.strerror}; {ADVICE}") from error
        if error.filename not in (str(folder), str(lock)):
            raise
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from error


@cache  # once in a process
def _delete_left_over() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}{os.getuid()}-*[!k]"):
        lock = folder.with_suffix(".lock")
        # A process holds the lock of its folder as long as the folder is there.
        with suppress(OSError, UserError), locked(lock, f"{lock} is locked") as held:
            if held:
                shutil.rmtree(folder, ignore_errors=True)
                lock.unlink(missing_ok=True)
