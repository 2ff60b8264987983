"""What every stage's command line shares: options from a dataclass, errors without traceback."""

import gc
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import tyro

from features.errors import UserError

Options = TypeVar("Options")


def run(
    stage: Callable[[Options], int | None],
    options_class: type[Options],
    prog: str,
    argv: Sequence[str] | None = None,
    expand: Callable[[list[str]], list[str]] = list,
) -> int:
    """Parse `argv` into `options_class`, run `stage` with it and return its exit status.

    The docstrings of the dataclass's fields are the help texts. A `UserError` is printed on the
    standard error and becomes exit status 2, as does an option that does not parse (`tyro` raises
    SystemExit(2) for it and names the nearest option). `expand` may add to the command line's
    arguments before they are parsed.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    for package in ("pipeline", "features", "decoder", "evaluation"):
        logging.getLogger(package).setLevel(logging.INFO)  # of libraries, only the warnings
    if isinstance(sys.stdout, io.TextIOWrapper):
        # So that a log shows how far a stage is, and a file name that is not UTF-8 can be printed.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    gc.freeze()  # what was imported stays: no search for garbage needs to go through it
    try:
        options = tyro.cli(
            options_class,
            prog=f"python -m {prog}",
            description=stage.__doc__,
            args=expand(list(sys.argv[1:] if argv is None else argv)),
            config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
        )
        return stage(options) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # no permission, no room, a name that is too long: not our mistake
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept", file=sys.stderr)
        return 130
    finally:
        gc.unfreeze()
