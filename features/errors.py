"""The exception whose message is written for the user."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """An error that the user can fix.

    The message says what was expected, what was found, where, and what to do. Commands print it
    without a traceback and exit with status 2 (see `pipeline.command.run`).
    """


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


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


def require(condition: bool, message: str) -> None:
    """Raise UserError with `message` unless `condition` holds."""
    if not condition:
        raise UserError(message)
