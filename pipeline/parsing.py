"""Command lines read by tyro into a dataclass of options, with errors in the words of --help."""

import io
import re
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from difflib import get_close_matches
from typing import TypeVar

import tyro

from features.errors import UserError
from pipeline.help import Option, options_of

Options = TypeVar("Options")

# How tyro reads options from a dataclass: --flag without a --no-flag beside it.
PARSING = (tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff)


def parse(options_class: type[Options], prog: str, arguments: Sequence[str]) -> Options:
    """Return the options of a command line.

    Args:
        options_class: a dataclass of options, as `pipeline.help` describes it.
        prog: what starts the command, such as "python -m decoder.caption".
        arguments: those behind it.

    Raises:
        UserError: an option is unknown, is missing or has a wrong or empty value, or one of
            `options_class.ONCE` is repeated.
    """
    _check_given(options_class, arguments)
    box = io.StringIO()
    try:
        # Where standard output is no terminal, tyro draws no frame around its message.
        with redirect_stderr(box), redirect_stdout(io.StringIO()):
            return tyro.cli(options_class, prog=prog, args=list(arguments), config=PARSING)
    except SystemExit:
        problem = _problem(list(options_of(options_class)), list(arguments), box.getvalue())
        raise UserError(f"{problem}; see {prog} --help") from None


def _check_given(options_class: type, arguments: Sequence[str]) -> None:
    """Refuse what would be taken for something else than was meant."""
    given = [_name(argument) for argument in arguments if argument.startswith("--")]
    for option in getattr(options_class, "ONCE", ()):
        if given.count(option) > 1:  # only the last one would count
            raise UserError(f"expected {option} once, found it twice; run the command for each")
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if not argument:  # as a path it would be the current folder
            usages = [option.usage for option in options_of(options_class)]
            wanted = next((usage for usage in usages if usage.split()[0] == before), "a value")
            raise UserError(
                f"expected {wanted}, found an empty argument; is a variable of your shell not set?"
            )


def _problem(options: list[Option], arguments: list[str], box: str) -> str:
    """Return what is wrong with a command line about which tyro printed `box`."""
    usages = {option.usage.split()[0]: option.usage for option in options if not option.positional}
    before = arguments[: arguments.index("--")] if "--" in arguments else arguments
    given = {_name(argument): argument for argument in before if argument.startswith("-")}
    for name in given:
        if name.startswith("--") and name not in usages:
            known = [usage.removeprefix("--") for usage in usages]
            near = get_close_matches(name.removeprefix("--"), known, n=3, cutoff=0.6)
            hint = f": did you mean --{' or --'.join(near)}?" if near else ""
            return f"unknown option {name}{hint}"
    missing = [o.usage for o in options if o.required and o.usage.split()[0] not in given]
    if missing:
        return f"expected {' and '.join(missing)}"
    # The first option that the message names has a value that does not fit, or none.
    _, message, *_ = [*re.split(r"^[^\w\n]*[-─]{5,}[^\w\n]*$", box, flags=re.MULTILINE), ""]
    named = [name for name in re.findall(r"--[\w.-]*\w", message) if name in given]
    if not named:
        return re.sub(r"[\s│|]+", " ", message).strip() or "the command line cannot be read"
    place = before.index(given[named[0]])
    values = before[place + 1 :]
    until = next((i for i, value in enumerate(values) if value.startswith("--")), len(values))
    found = " ".join(before[place : place + 1 + until])
    return f"expected {usages[named[0]]}, found {found}"


def _name(argument: str) -> str:
    """Return the name of an option, which may have its value behind an equals sign."""
    return argument.partition("=")[0].replace("_", "-")
