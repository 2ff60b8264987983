"""The one exception that a user is meant to read."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake that the user can mend.

    The message says what was expected, what was found, where, and what to do. Stages print it
    without a traceback and exit with status 2 (see `pipeline.command.run`).
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for a `name` that is none of the `known` ones, suggesting the nearest."""
    names = sorted(known)
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are: {', '.join(names)}"
    return UserError(f"unknown {kind} {name!r}: {hint}")


def first_few(items: Iterable[object], most: int = 5) -> str:
    """Return the first `most` items as text, and how many there are besides."""
    listed = [str(item) for item in items]
    rest = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {rest} more" if rest > 0 else "")


def first_line(error: Exception) -> str:
    """Return an error's first line, or its type if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


def require(condition: bool, message: str) -> None:
    """Raise UserError with `message` unless `condition` holds."""
    if not condition:
        raise UserError(message)
