"""The page that --help prints: what a command does, examples, the everyday options.

A dataclass of options has two class variables beside its fields: `EXAMPLES`, what a command line
does and its arguments, and `EVERYDAY`, the fields that --help shows ("rl.epochs" for a field of a
nested dataclass). --help-all adds the other fields. A field's docstring is its help text.
A third one, `ONCE`, names options that must not be repeated, since the last would win.
"""

import ast
import inspect
import re
import shutil
import textwrap
import typing
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

_WIDTHS = (60, 100)  # columns: no page is narrower or wider, whatever the terminal
_INDENT = 24  # column where the help texts start
_NO_BREAK = "\xa0"
_METAVARS = {Path: "PATH", str: "NAME", int: "N", float: "X"}


@dataclass(frozen=True)
class Option:
    """An option as the help shows it."""

    field: str
    """Dotted name of the field, such as "rl.epochs"."""
    usage: str
    """What is typed: "--beam N", or "PICTURES ..." for a positional argument."""
    text: str
    required: bool
    section: str
    """First line of the docstring of a nested dataclass; empty for the command's own options."""

    @property
    def positional(self) -> bool:
        """Whether the option is given without a name."""
        return not self.usage.startswith("-")


def page(
    stage: Callable[..., object], options_class: type, prog: str, everything: bool, width: int = 0
) -> str:
    """Return the help of a command.

    Args:
        stage: its docstring is the description, apart from the sections "Returns" and "Raises".
        options_class: a dataclass with `EXAMPLES` and `EVERYDAY`.
        prog: what starts the command, such as "python -m decoder.caption".
        everything: whether to show the options that are not in `EVERYDAY` too.
        width: columns of a line; 0 takes the terminal's.
    """
    least, most = _WIDTHS
    width = max(least, min(most, width or shutil.get_terminal_size().columns))
    all_options = {option.field: option for option in options_of(options_class)}
    everyday: tuple[str, ...] = options_class.EVERYDAY  # type: ignore[attr-defined]
    examples: dict[str, str] = options_class.EXAMPLES  # type: ignore[attr-defined]

    required = [o.usage for o in all_options.values() if o.required]
    positional = [f"[{o.usage}]" for o in all_options.values() if o.positional]
    lines = [" ".join(["usage:", prog, *required, "[OPTIONS]", *positional]), ""]
    description = re.split(r"\n\n(?:Returns|Raises):", inspect.cleandoc(stage.__doc__ or ""))[0]
    for paragraph in description.split("\n\n"):
        lines += [*textwrap.wrap(paragraph, width), ""]

    lines.append("Examples:")
    for purpose, arguments in examples.items():
        lines += textwrap.wrap(purpose, width, initial_indent="  ", subsequent_indent="  ")
        lines += _command(prog, arguments, width)

    sections = {"Options": [all_options[name] for name in everyday]}
    if everything:
        for name, option in all_options.items():
            if name not in everyday:
                sections.setdefault(option.section or "More options", []).append(option)
    for title, options in sections.items():
        lines += ["", f"{title}:"]
        for option in options:
            lines += _entry(option.usage, option.text, width)
    if everything:
        lines += _entry("-q, --quiet", "Leave out progress and status lines.", width)
        lines += _entry("--version", "Show the version.", width)
    else:
        lines += _entry("--help-all", "Show all options.", width)
    return "\n".join(lines)


def _command(prog: str, arguments: str, width: int) -> list[str]:
    """Return the lines of a command line, continued before an option where it is too long."""
    glued = re.sub(" (?!--)", _NO_BREAK, f"{prog} {arguments}".rstrip())
    lines = textwrap.wrap(
        glued,
        width - len(" \\"),
        initial_indent=" " * 4,
        subsequent_indent=" " * 8,
        break_on_hyphens=False,
        break_long_words=False,
    )
    return " \\\n".join(lines).replace(_NO_BREAK, " ").split("\n")


def _entry(usage: str, text: str, width: int) -> list[str]:
    """Return the lines of one option: its usage, its help text in a column to the right."""
    column = " " * _INDENT
    text = re.sub(r"\([^()]*\)$", lambda last: last[0].replace(" ", _NO_BREAK), text)  # the default
    lines = textwrap.wrap(
        text, width, initial_indent=column, subsequent_indent=column, break_on_hyphens=False
    )
    lines = [line.replace(_NO_BREAK, " ") for line in lines]
    if len(usage) + 4 > _INDENT:
        return [f"  {usage}", *lines]
    return [f"  {usage}".ljust(_INDENT) + lines[0].lstrip(), *lines[1:]]


def options_of(options_class: type, prefix: str = "", shown: str = "") -> Iterator[Option]:
    """Return the options of a dataclass and of those nested in it.

    Fields have names that start with `prefix`, the options that are typed with `shown`.
    """
    types = typing.get_type_hints(options_class, include_extras=True)
    texts = _docstrings(options_class)
    section = inspect.cleandoc(options_class.__doc__ or "").splitlines()[0].rstrip(".")
    for field in fields(options_class):
        marks: tuple[Any, ...] = getattr(types[field.name], "__metadata__", ())
        kind = types[field.name].__origin__ if marks else types[field.name]
        if is_dataclass(kind) and isinstance(kind, type):
            inner = "" if tyro.conf.OmitArgPrefixes in marks else f"{shown}{field.name}."
            yield from options_of(kind, f"{prefix}{field.name}.", inner)
            continue
        name = f"--{shown}{_marked(marks, 'name') or field.name}".replace("_", "-")
        metavar = _metavar(kind, _marked(marks, "metavar"))
        if tyro.conf.Positional in marks:
            usage = f"{field.name.upper()} ..."
        elif tyro.conf.UseAppendAction in marks:
            usage = f"{name} {metavar.removesuffix(' ...')}"
        else:
            usage = f"{name} {metavar}".rstrip()
        required = field.default is MISSING and field.default_factory is MISSING
        text = texts[field.name]
        if required:
            text += " (required)"
        elif not any(field.default is nothing for nothing in (None, False, ())):
            text += f" (default: {field.default})"
        yield Option(f"{prefix}{field.name}", usage, text, required, section if prefix else "")


def _marked(marks: tuple[Any, ...], what: str) -> str | None:
    """Return the name or metavar that `tyro.conf.arg` gives a field, None if it gives none."""
    return next((str(of) for mark in marks if (of := getattr(mark, what, None))), None)


def _metavar(kind: Any, given: str | None) -> str:
    """Return how the value of an option is written in its usage; nothing for a flag."""
    if kind is bool:
        return ""
    if kind in _METAVARS:
        return given or _METAVARS[kind]
    parts = [part for part in typing.get_args(kind) if part not in (type(None), ...)]
    if typing.get_origin(kind) is Literal:
        return "{" + ",".join(parts) + "}"
    inner = _metavar(parts[0], given)  # T of T | None, or of tuple[T, ...]
    return f"{inner} ..." if typing.get_origin(kind) is tuple else inner


def _docstrings(options_class: type) -> dict[str, str]:
    """Return the text of the string literal below each field, in one line."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(options_class))).body
    assert isinstance(tree, ast.ClassDef)
    texts = {}
    for statement, following in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
            assert isinstance(statement.target, ast.Name)
            texts[statement.target.id] = " ".join(ast.literal_eval(following.value).split())
    return texts
