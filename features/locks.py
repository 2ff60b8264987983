"""One process at a time: a lock that ends with its process."""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from features.errors import UserError

log = logging.getLogger(__name__)

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


@contextmanager
def locked(file: Path, busy: str, wait: bool = False) -> Iterator[bool]:
    """Hold the lock `file` for the duration of the block, and yield whether it is held.

    On a disk without locks, as some network disks are, there is a warning instead of a lock. With
    `wait`, this logs `busy` and waits while another process holds the lock.

    Raises:
        UserError: another process holds the lock; `busy` is the message.
        OSError: the lock file cannot be written.
    """
    lock = filelock.FileLock(file, timeout=0)
    try:
        try:
            lock.acquire()
        except filelock.Timeout as error:
            if not wait:
                raise UserError(busy) from error
            log.info(busy)
            lock.acquire(timeout=-1)
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        log.warning(
            "the disk of %s has no file locks: make sure that no other process writes there",
            file.parent,
        )
    try:
        yield lock.is_locked
    finally:
        lock.release()
