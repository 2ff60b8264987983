"""Run a command: options from a dataclass, errors without traceback, its exit status."""

import gc
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import tyro

from features.errors import UserError
from features.extras import missing
from pipeline.help import help_requested, page

Options = TypeVar("Options")

# How tyro reads options from a dataclass: --flag without a --no-flag beside it.
PARSING = (tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff)


def run(
    stage: Callable[[Options], int | None],
    options_class: type[Options],
    prog: str,
    argv: Sequence[str] | None = None,
    expand: Callable[[list[str]], list[str]] = list,
) -> int:
    """Parse `argv` into `options_class`, run `stage` with it and return its exit status.

    --help prints the page of `pipeline.help`. A `UserError` is printed on the standard error and
    becomes exit status 2, as does an option that does not parse (`tyro` raises SystemExit(2) for it
    and names the nearest option). `expand` may add arguments to the command line before it is
    parsed.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    for package in ("pipeline", "features", "decoder", "evaluation"):
        logging.getLogger(package).setLevel(logging.INFO)  # libraries: warnings only
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Each line appears in a log at once, and a file name that is not UTF-8 can be printed.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    gc.freeze()  # imported objects stay: garbage collection need not visit them
    try:
        if help_requested(arguments):
            print(page(stage, options_class, f"python -m {prog}", "--help-all" in arguments))
            return 0
        options = tyro.cli(
            options_class,
            prog=f"python -m {prog}",
            description=stage.__doc__,
            args=expand(arguments),
            config=PARSING,
        )
        return stage(options) or 0
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
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept", file=sys.stderr)
        return 130
    finally:
        gc.unfreeze()
