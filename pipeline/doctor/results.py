"""What an examination finds, and what to do about it."""

from typing import Literal, NamedTuple


class Finding(NamedTuple):
    """One line of a diagnosis; what is not "ok" comes with advice."""

    level: Literal["ok", "warning", "problem"]
    text: str
    advice: str = ""


def ok(text: str) -> Finding:
    """Return a finding that all is well."""
    return Finding("ok", text)


def warning(text: str, advice: str) -> Finding:
    """Return a finding of something that works, but not as one may think."""
    return Finding("warning", text, advice)


def problem(text: str, advice: str) -> Finding:
    """Return a finding of something that does not work."""
    return Finding("problem", text, advice)
