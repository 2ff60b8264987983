"""Run a command: options from a dataclass, errors without traceback, its exit status."""

import gc
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from typing import TextIO, TypeVar

from features import progress
from features.commands import called
from features.errors import UserError
from features.extras import missing
from pipeline.help import page
from pipeline.parsing import parse

Options = TypeVar("Options")

_HELP = {"-h", "--help", "--help-all"}
_QUIET = {"-q", "--quiet"}
_PACKAGES = ("pipeline", "features", "decoder", "evaluation")


def run(
    stage: Callable[[Options], int | None],
    options_class: type[Options],
    module: str,
    argv: Sequence[str] | None = None,
    expand: Callable[[list[str]], list[str]] = list,
) -> int:
    """Parse `argv` into `options_class`, run `stage` with it and return its exit status.

    Every command has three options more: --help prints the page of `pipeline.help`, --version the
    version, and --quiet leaves out progress and status lines. A `UserError`, such as a wrong
    option, is printed on the standard error and becomes exit status 2, as does an optional package
    that is missing.

    Args:
        stage: what the command does.
        options_class: the dataclass of its options.
        module: the command's name under `python -m`; its last part starts its status lines.
        argv: the command line, by default that of the process.
        expand: adds arguments to the command line before it is parsed.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    prog = called(module)
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Each line appears in a log at once, and a file name that is not UTF-8 can be printed.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    gc.freeze()  # imported objects stay: garbage collection need not visit them
    try:
        asked = _before_two_dashes(arguments)
        if not _HELP.isdisjoint(asked):
            print(page(stage, options_class, prog, "--help-all" in asked))
            return 0
        if "--version" in asked:
            print(f"{prog} {_version()}")
            return 0
        quiet = not _QUIET.isdisjoint(asked)
        arguments = [*(a for a in asked if a not in _QUIET), *arguments[len(asked) :]]
        with _status_lines(module.rpartition(".")[2], quiet):
            return stage(_options(options_class, prog, arguments, expand)) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (explained := missing(error)) is None:
            raise
        print(f"error: {explained}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # head or less has closed its end of the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # no permission, a full disk, a name that is too long
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if "Symlink loop" not in str(error):  # which Path.resolve raises before Python 3.13
            raise
        print(f"error: {error}: a link leads to itself", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept", file=sys.stderr)
        return 130
    finally:
        gc.unfreeze()


def _options(
    options_class: type[Options],
    prog: str,
    arguments: list[str],
    expand: Callable[[list[str]], list[str]],
) -> Options:
    """Parse a command line; an error about options that only `expand` added says so."""
    expanded = expand(arguments)
    try:
        return parse(options_class, prog, expanded)
    except UserError as error:
        typed = {argument.partition("=")[0] for argument in arguments}
        added = {one.partition("=")[0] for one in expanded[: len(expanded) - len(arguments)]}
        named = sorted(one for one in added - typed if one in str(error))
        if not named:
            raise
        sources = " and ".join(sorted({"--preset", "--like", "--init"} & typed))
        raise UserError(f"{error} ({sources} sets {', '.join(named)})") from error


def _before_two_dashes(arguments: list[str]) -> list[str]:
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def _version() -> str:
    try:
        return version("caption-pipeline")
    except PackageNotFoundError:
        return "(not installed)"


@contextmanager
def _status_lines(name: str, quiet: bool) -> Iterator[None]:
    """Show progress and status lines in the block, or leave them out if it is to be quiet."""
    for package in _PACKAGES:  # libraries: warnings only
        logging.getLogger(package).setLevel(logging.WARNING if quiet else logging.INFO)
    if not quiet:
        yield
        return
    # The one line of decoder.demo is its result: the address.
    out = sys.stdout if name == "demo" else _Results(sys.stdout, f"{name}: ")
    progress.set_quiet(True)
    try:
        with redirect_stdout(out):
            yield
    finally:
        progress.set_quiet(False)


class _Results(io.TextIOBase):
    """Passes on the lines of a command's output that are no status lines.

    Args:
        out: where the lines go.
        status: how a status line starts.
    """

    def __init__(self, out: TextIO, status: str) -> None:
        self._out = out
        self._status = status
        self._line = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the output."""
        return self._out.encoding

    def write(self, text: str) -> int:
        """Write `text`, as `io.TextIOBase.write` does."""
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            if not line.startswith(self._status):
                self._out.write(f"{line}\n")
        return len(text)

    def flush(self) -> None:
        """Flush what has been passed on."""
        self._out.flush()

    def isatty(self) -> bool:
        """Whether the lines go to a terminal."""
        return self._out.isatty()

    def fileno(self) -> int:
        """Return the file descriptor of the output."""
        return self._out.fileno()
