"""Finding pictures, and printing their captions."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from decoder.captioning.writer import CaptionWriter
from features.errors import UserError
from pipeline.text import CONTROL

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
PICTURE_SUFFIXES |= {".heic", ".heif"}  # cannot be read, but must be reported rather than skipped


def find_pictures(given: Sequence[Path]) -> list[Path]:
    """Return the files given, and the pictures in the folders given and below them, each once.

    Raises:
        UserError: there are none.
    """
    paths = list(dict.fromkeys(_pictures(given)))
    if not paths:
        raise UserError(f"expected pictures, found none in {', '.join(map(str, given))}")
    return paths


def _pictures(given: Iterable[Path]) -> Iterator[Path]:
    for path in given:
        if os.path.isdir(path):  # noqa: PTH112  # Path.is_dir raises for a name that is too long
            for inside in sorted(path.rglob("*")):
                picture = inside.suffix.lower() in PICTURE_SUFFIXES and inside.is_file()
                if picture and not inside.name.startswith("._"):  # metadata written by macOS
                    yield inside
        else:
            yield path


def check_names(pictures: Iterable[Path], what: str) -> None:
    """Raise UserError if a control character in a name would break the lines of `what`."""
    broken = [repr(str(path)) for path in pictures if CONTROL.search(str(path))]
    if broken:
        few = ", ".join(broken[:5])
        raise UserError(
            f"{len(broken)} names contain a line break, a tab or another control character, which "
            f"would break the lines of {what}: {few}; print JSON with --json, or write it with "
            "--out FILE.jsonl"
        )


def print_captions(writer: CaptionWriter, paths: Sequence[Path], json_lines: bool) -> None:
    """Print a line for each caption: path, tab, sentence; or a JSON object for each picture.

    Raises:
        UserError: a name would break the lines, or see `CaptionWriter.captions`.
    """
    if not json_lines:
        check_names(paths, "text that is printed")
    # On a terminal the printed lines already show the progress.
    for path, captions in writer.captions(paths, quiet=sys.stdout.isatty()):
        if json_lines:
            line = {"path": str(path), **writer.as_json(captions)}
            print(json.dumps(line, ensure_ascii=False), flush=True)
        else:
            for caption in captions:
                mark = "\tunsure" if caption.unsure else ""
                print(f"{path}\t{caption.sentence}{mark}", flush=True)
