"""Captions of pictures and folders of pictures: printed, in a listing, or in sidecars."""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from decoder.captioning import sidecars
from decoder.captioning.listing import Listing, check_names, state_of
from decoder.captioning.options import CaptionOptions
from decoder.captioning.writer import PictureWriter, Runs, identity
from features.errors import UserError, first_few

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}


PICTURE_SUFFIXES |= {".heic", ".heif"}  # which cannot be read, but must not be passed over


def caption_files(options: CaptionOptions, runs: Runs) -> int:
    """Caption the pictures named by the options and return the exit status."""
    paths = list(dict.fromkeys(_pictures(options.pictures)))
    if not paths:
        raise UserError(f"no pictures in {', '.join(map(str, options.pictures))}")
    if options.out is not None:
        return _list(options, runs, paths, options.out)
    if options.sidecar is not None:
        return _write_sidecars(options, runs, paths, options.sidecar)
    if not options.json:
        check_names(paths, "text that is printed")
    writer = PictureWriter(runs, options)
    # Lines that scroll by show the progress by themselves.
    for path, told in writer.each(paths, quiet=sys.stdout.isatty()):
        best, *others = told
        if options.json:
            line = {"path": str(path), **best.as_json()}
            if options.generate.captions > 1:
                line["alternatives"] = [other.as_json() for other in others]
            print(json.dumps(line, ensure_ascii=False), flush=True)
        else:
            for one in told:
                mark = "\tunsure" if one.unsure else ""
                print(f"{path}\t{one.sentence}{mark}", flush=True)
    return name_unreadable(writer)


def _list(options: CaptionOptions, runs: Runs, paths: list[Path], out: Path) -> int:
    if out.suffix.lower() == ".csv":
        check_names(paths, "a CSV file")
    states = {path: state_of(path) for path in paths}
    with Listing(out, identity(runs, options), options.force) as listing:
        missing = [path for path in paths if not listing.has(path)]
        writer = PictureWriter(runs, options)
        for path, (best, *others) in writer.each(missing, len(paths) - len(missing)):
            values = best.as_json()
            if options.generate.captions > 1:
                values["alternatives"] = [other.as_json() for other in others]
            listing.add([(path, states[path], values)])
    print(f"caption: {writer.written} captions added to {out}, {len(paths) - len(missing)} there")
    return name_unreadable(writer)


def _write_sidecars(options: CaptionOptions, runs: Runs, paths: list[Path], kind: str) -> int:
    missing = [path for path in paths if options.force or sidecars.may_write(path, kind)]
    there = [path for path in paths if path not in set(missing)]
    writer = PictureWriter(runs, options)
    empty: list[str] = []
    for path, (best, *_) in writer.each(missing, len(there)):
        if best.sentence:
            sidecars.write(path, kind, best.standing_alone)
        else:
            empty.append(str(path))
    print(
        f"caption: {writer.written - len(empty)} sidecars written, {len(there)} were there"
        + (f"; {len(empty)} captions are empty and have none: {first_few(empty)}" if empty else "")
    )
    if old := [str(path) for path in there if sidecars.is_older(path, kind)]:
        print(
            f"caption: {len(old)} of these are older than their pictures and perhaps not ours: "
            f"{first_few(old)}; --force replaces all sidecars",
            file=sys.stderr,
        )
    return name_unreadable(writer)


def name_unreadable(writer: PictureWriter) -> int:
    """Name the pictures that could not be read, and return the exit status."""
    for path, error in writer.unreadable:
        print(f"error: cannot read {path}: {error}", file=sys.stderr)
    return 2 if writer.unreadable else 0


def _pictures(given: Iterable[Path]) -> Iterable[Path]:
    """Yield the files given, and the pictures in the folders given and below them, sorted."""
    for path in given:
        if os.path.isdir(path):  # noqa: PTH112  # Path.is_dir raises for a name that is too long
            for inside in sorted(path.rglob("*")):
                picture = inside.suffix.lower() in PICTURE_SUFFIXES and inside.is_file()
                if picture and not inside.name.startswith("._"):  # in which macOS keeps notes
                    yield inside
        else:
            yield path
