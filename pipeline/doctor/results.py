"""The result of a check, and advice if something is wrong."""

from typing import Literal, NamedTuple


class CheckResult(NamedTuple):
    """One line of the doctor's output; a warning or a problem has advice."""

    level: Literal["ok", "warning", "problem"]
    text: str
    advice: str = ""


def ok(text: str) -> CheckResult:
    """Return the result of a check that passed."""
    return CheckResult("ok", text)


def warning(text: str, advice: str) -> CheckResult:
    """Return the result for something that works, but perhaps not as intended."""
    return CheckResult("warning", text, advice)


def problem(text: str, advice: str) -> CheckResult:
    """Return the result for something that does not work."""
    return CheckResult("problem", text, advice)
