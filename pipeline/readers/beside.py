"""Captions in text files beside the pictures: photo.txt, as tools that train image models use.

img2dataset (https://github.com/rom1504/img2dataset) writes such folders, with a .json of the same
name for each picture.
"""

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from features.errors import UserError, first_few, unreadable
from features.generated_texts import is_registry, registered
from pipeline.readers.cells import captions_in, is_missing
from pipeline.readers.files import read_json, read_text

_SUFFIXES = (".txt", ".caption", ".TXT", ".CAPTION")


def read_beside(root: Path, pictures: Iterable[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return (file name, caption) pairs of the pictures that have a text file, and remarks.

    Each line of photo.txt (or photo.caption) is a caption of photo.jpg; without that file, the
    "caption" in photo.json is. Files that decoder.caption wrote, and nobody changed, are left out.

    Raises:
        UserError: decoder.caption 0.2 may have written a file, a file belongs to two pictures or
            holds no text, a picture has two files, or the record of generated files is damaged.
    """
    names = sorted(pictures)
    owners = Counter(str(Path(name).with_suffix("")) for name in names)
    registry = _Registry()
    pairs: list[tuple[str, str]] = []
    generated: list[Path] = []
    doubtful: list[Path] = []
    passed_over: list[Path] = []
    without: list[str] = []
    several = 0
    for name in names:
        picture = root / name
        long = picture.with_name(f"{picture.name}.txt")
        texts: list[str] = []
        beside = [path for path in map(picture.with_suffix, _SUFFIXES) if path.is_file()]
        # Where the case of letters does not count, a.txt is found as a.TXT too.
        beside = list({path.stat().st_ino: path for path in reversed(beside)}.values())[::-1]
        ours = [path for path in beside if registry.has(path)]
        generated += ours
        theirs = [path for path in beside if path not in ours]
        if len(theirs) > 1:
            raise UserError(
                f"{theirs[0]}: expected the captions of {name} in one file, found "
                f"{theirs[1].name} too; keep one"
            )
        for short in theirs[:1]:
            if owners[str(Path(name).with_suffix(""))] > 1:
                raise UserError(
                    f"{short}: expected one picture of this name, found {name} and others; keep "
                    "one, or list the captions in a CSV file"
                )
            texts = _lines(short)
            several += len(texts) > 1
        if long.is_file():
            if registry.has(long):
                generated.append(long)
            else:
                (passed_over if texts else doubtful).append(long)
        if not texts:
            texts = _metadata_captions(picture.with_suffix(".json"))
        if not texts:
            without.append(name)
        pairs += [(name, text) for text in texts]
    if doubtful:
        raise UserError(
            f"{root}: {len(doubtful)} text files are named as decoder.caption --sidecar txt names "
            f"those it writes: {_named(doubtful, root)}; if people wrote them, rename them "
            "(photo.jpg.txt to photo.txt); if not, delete them, because captions of a captioner "
            "must not be learnt from"
        )
    remarks = [f"captions from {len(names) - len(without)} text files beside the pictures"]
    for files, what in (
        (generated, "text files were written by decoder.caption, left out"),
        (passed_over, "text files are named like photo.jpg.txt beside a photo.txt, left out"),
        (_without_picture(root, owners), "text files belong to no picture, not used"),
    ):
        if files:
            remarks.append(f"{len(files)} {what}: {_named(files, root)}")
    if several:
        remarks.append(f"{several} text files have more lines than one: each line is a caption")
    if without:
        remarks.append(f"{len(without)} pictures have no text file: {first_few(without)}")
    return pairs, [*remarks, *_downloads(root)]


def _lines(path: Path) -> list[str]:
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if lines and all(re.fullmatch(r"[-+\d.,eE\s]+", line) for line in lines):
        raise UserError(
            f"{path}, line 1: expected a caption, found {lines[0]!r:.60}; files of numbers, such "
            "as the boxes of a detector, cannot be learnt from"
        )
    return lines


def _metadata_captions(path: Path) -> list[str]:
    """Return the captions in the .json file of a picture, none if it has none."""
    if not path.is_file():
        return []
    content = read_json(path)
    if not isinstance(content, dict) or content.get("caption") is None:
        return []
    try:
        return [text for text in captions_in(content["caption"]) if not is_missing(text)]
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


class _Registry:
    """The text files that decoder.caption wrote, read once for each folder."""

    def __init__(self) -> None:
        self._digests: dict[Path, dict[str, set[str]]] = {}

    def has(self, path: Path) -> bool:
        """Whether decoder.caption wrote the file with the content that it has."""
        folder = path.parent
        if folder not in self._digests:
            self._digests[folder] = self._read(folder)
        digests = self._digests[folder].get(path.name)
        if digests is None:
            return False
        try:
            return hashlib.sha256(path.read_bytes()).hexdigest() in digests
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error

    @staticmethod
    def _read(folder: Path) -> dict[str, set[str]]:
        known: dict[str, set[str]] = defaultdict(set)
        path = folder
        try:
            for path in (each for each in folder.iterdir() if is_registry(each.name)):
                for name, digests in registered(path.read_bytes()).items():
                    known[name] |= digests
        except OSError as error:
            raise unreadable(path, error) from error
        except ValueError as error:
            raise UserError(
                f"{path} records which text files are generated, and is damaged ({error}); without "
                "it they cannot be told from captions that people wrote"
            ) from error
        return known


def _without_picture(root: Path, owners: Counter[str]) -> list[Path]:
    """Return the text files below `root` beside which there is no picture."""
    found = []
    for folder, _, files in os.walk(root):
        for file in files:
            path = Path(folder, file)
            stem = str(path.relative_to(root).with_suffix(""))
            # photo.jpg.txt is the text file of photo.jpg
            if (
                path.suffix.lower() in _SUFFIXES
                and not {stem, str(Path(stem).with_suffix(""))} & owners.keys()
            ):
                found.append(path)
    return sorted(found)


def _downloads(root: Path) -> list[str]:
    """Return what img2dataset's statistics say about pictures that it could not download."""
    count = failed = 0
    for path in sorted(root.rglob("*_stats.json")):
        content = read_json(path)
        numbers = [content.get(key) for key in ("count", "successes")] if content else []
        if len(numbers) == 2 and all(type(number) is int for number in numbers):
            count += numbers[0]
            failed += numbers[0] - numbers[1]
    return [f"{failed} of {count} downloads of img2dataset had failed"] if failed else []


def _named(files: Iterable[Path], root: Path) -> str:
    return first_few(path.relative_to(root) for path in files)
