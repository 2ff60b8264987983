"""Finding pictures, and printing their captions."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from decoder.captioning.writer import CaptionWriter
from features import folders
from features.errors import UserError
from features.images import PictureError
from pipeline.text import CONTROL


def find_pictures(given: Sequence[Path], may_be_none: bool = False) -> folders.Found:
    """Return the files given, and the pictures in the folders given and below them, each once.

    Raises:
        UserError: there are none, unless there `may_be_none`.
    """
    found = folders.find_pictures(given)
    if not found.pictures and not found.closed and not may_be_none:
        note = folders.passed_over_note(found.passed_over)
        raise UserError(
            f"expected pictures, found none in {', '.join(map(str, given))}"
            + (f"; passed over: {note}" if note else "")
        )
    return found


def as_json_line(values: Mapping[str, Any]) -> str:
    """Return values as JSON for standard output, in ASCII unless that is in UTF-8."""
    unicode = "utf" in (sys.stdout.encoding or "utf").lower()
    return json.dumps(values, ensure_ascii=not unicode)


def check_names(
    pictures: Iterable[Path],
    what: str,
    instead: str = "print JSON with --json, or write it with --out FILE.jsonl",
) -> None:
    """Raise UserError if a control character in a name would break the lines of `what`."""
    broken = [repr(str(path)) for path in pictures if CONTROL.search(str(path))]
    if broken:
        few = ", ".join(broken[:5])
        raise UserError(
            f"{len(broken)} names contain a line break, a tab or another control character, which "
            f"would break the lines of {what}: {few}; {instead}"
        )


def print_captions(
    writer: CaptionWriter,
    paths: Sequence[Path],
    json_lines: bool,
    failed: Iterable[tuple[Path, PictureError]] = (),
) -> None:
    """Print a line for each caption: path, tab, sentence; or a JSON object for each picture.

    Only JSON has a line for a picture that cannot be read, with the reason as `error`, and for
    those that `failed` before.

    Raises:
        UserError: a name would break the lines, or see `CaptionWriter.captions`.
    """
    if not json_lines:
        check_names(paths, "text that is printed")
    # On a terminal the printed lines already show the progress.
    results = writer.results(paths, quiet=sys.stdout.isatty())
    for path, result in chain(results, failed):
        name = writer.names.get(path, str(path))
        if json_lines:
            line = {"path": name, **writer.as_json(result)}
            print(as_json_line(line), flush=True)
        elif not isinstance(result, PictureError):
            for caption in result:
                doubt = f"\t{caption.doubt}" if caption.doubt else ""
                print(f"{name}\t{caption.caption}{doubt}", flush=True)
