"""The exceptions whose messages are written for the user."""

import errno
import os
from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """An error that the user can fix.

    The message says what was expected, what was found, where, and what to do. Commands print it
    without a traceback and exit with status 2 (see `pipeline.command.run`).
    """


class AccessError(UserError):
    """A file cannot be read now; whether its content is intact is unknown.

    Nothing may be deleted, replaced or started again because of it.
    """


# What an error of the operating system says about access, with the advice.
_ADVICE = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), "check its permissions and those of its folder"),
    **dict.fromkeys(
        (errno.EAGAIN, errno.EBUSY, errno.ETXTBSY, errno.EDEADLK),
        "another program has it open; close it there and try again",
    ),
    **dict.fromkeys(
        (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP),
        "its disk does not support this; copy it to a local disk",
    ),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files with ulimit -n"),
    errno.EISDIR: "expected a file",
    errno.ENOMEM: "free some memory and try again",
}
_TRY_AGAIN = "the disk or the network failed and the file may be intact; try again"


def unreadable(path: object, error: OSError) -> AccessError:
    """Return the error for a file that the operating system does not let us read."""
    number = error.errno or 0
    advice = _ADVICE.get(number, _TRY_AGAIN)
    return AccessError(f"cannot read {path}: {error.strerror or error}; {advice}")


def is_about_access(reason: str) -> bool:
    """Whether `reason` is the operating system's text for an error of access, which may pass."""
    return reason in _ACCESS_REASONS


_ACCESS_REASONS = {
    os.strerror(number)
    for number in (
        *_ADVICE,
        *(errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV),
        *(errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN),
        *(errno.ECONNRESET, errno.ECONNABORTED, errno.ENETDOWN, errno.ENETUNREACH),
    )
}


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for a `name` that is not among `known`; it suggests similar names."""
    names = sorted(known)
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are: {', '.join(names)}"
    return UserError(f"unknown {kind} {name!r}: {hint}")


def first_few(items: Iterable[object], most: int = 5) -> str:
    """Return the first `most` items as text, followed by the number of the remaining ones."""
    listed = [str(item) for item in items]
    rest = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {rest} more" if rest > 0 else "")


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, such as "1 shard" or "2,000 shards"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


def require(condition: bool, message: str) -> None:
    """Raise UserError with `message` unless `condition` holds."""
    if not condition:
        raise UserError(message)
