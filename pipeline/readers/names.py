"""File names as tables write them, matched with the files on disk."""

import html
import itertools
import os
import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from features.errors import UserError
from features.folders import walk
from features.kinds import PICTURE_SUFFIXES
from pipeline.readers.records import Record
from pipeline.text import CONTROL

# A path of another machine: /home/x.jpg, C:/x.jpg, //server/x.jpg or file:/x.jpg.
_ABSOLUTE = re.compile(r"(?:file:)?/|[a-z]:/", re.IGNORECASE)
_SURROGATE = re.compile("[\ud800-\udfff]")
_INVISIBLE = " \t\r\n\u00a0\u200b\u200e\u200f\u2060\ufeff\"'"


class NameIndex:
    """File names in memory, found by names that other systems spell differently."""

    def __init__(self, names: Iterable[str]) -> None:
        self._files: dict[str, list[str]] = defaultdict(list)  # by folded path
        self._stems: dict[str, list[str]] = defaultdict(list)  # folded path without the suffix
        self._base_names: dict[str, list[str]] = defaultdict(list)
        for name in names:
            folded = fold(name)
            self._files[folded].append(name)
            if PurePosixPath(folded).suffix in PICTURE_SUFFIXES:
                self._stems[str(PurePosixPath(folded).with_suffix(""))].append(name)
                self._base_names[PurePosixPath(folded).name].append(name)
        # A name without its folder may also lack its suffix.
        for stem in [stem for stem in self._stems if "/" in stem]:
            self._base_names[stem.rpartition("/")[2]] += self._stems[stem]

    def find(self, spellings: Iterable[str]) -> str | None:
        """Return the only file that one of the spellings fits; None if that is not clear."""
        by_stem, by_base_name = [], []
        for spelling in spellings:
            folded = fold(spelling)
            if match := _only(self._files.get(folded)):
                return match
            if PurePosixPath(folded).suffix not in PICTURE_SUFFIXES:
                by_stem.append(_only(self._stems.get(folded)))
            if "/" not in spelling:
                by_base_name.append(_only(self._base_names.get(folded)))
        return next(filter(None, (*by_stem, *by_base_name)), None)

    def with_base_name(self, name: str) -> list[str]:
        """Return the files with the base name of `name`, in any folder; it may lack its suffix."""
        base_name = PurePosixPath(fold(name)).name
        # Those at the top are not among the base names without suffix.
        return self._base_names.get(base_name) or self._stems.get(base_name) or []

    def agreeing(self, name: str) -> list[str]:
        """Return the files that a path may mean, seen from another folder.

        They have its base name, and the folders that both paths have agree: `b/1.jpg` is
        `a/b/1.jpg`, and the other way round. Of several only those are returned that agree in most
        folders.
        """
        folders = [part for part in PurePosixPath(fold(name)).parts[:-1] if part != ".."]
        by_depth: dict[int, list[str]] = defaultdict(list)
        for file in self.with_base_name(name):
            own = [*PurePosixPath(fold(file)).parts[:-1]]
            depth = min(len(own), len(folders))
            if own[len(own) - depth :] == folders[len(folders) - depth :]:
                by_depth[depth].append(file)
        return by_depth[max(by_depth)] if by_depth else []

    def at_end_of(self, path: str) -> str | None:
        """Return the only file with the longest end of a path: `b/1.jpg` of `/home/a/b/1.jpg`."""
        parts = PurePosixPath(fold(path)).parts
        for start in range(1, len(parts)):
            end = "/".join(parts[start:])
            if files := self._files.get(end) or self._stems.get(end):
                return _only(files)
        return None

    def nearest(self, name: str) -> str | None:
        """Return the file whose name is most similar to that of a missing one."""
        folded = fold(name.strip(_INVISIBLE).replace("\\", "/"))
        base_name = PurePosixPath(folded).name
        if same := self._base_names.get(base_name):
            return same[0]
        if same := self._stems.get(str(PurePosixPath(folded).with_suffix(""))) if base_name else []:
            return same[0]
        if len(self._files) > 20_000:  # comparing with each takes seconds
            return None
        near = get_close_matches(folded, self._files, n=1, cutoff=0.8)
        return self._files[near[0]][0] if near else None


class PictureNames:
    """The files below a folder, found by names that other systems spell differently.

    A name is tried as it is, then without blanks, quotes, "./", "../", backslashes, %20 and the
    folder's own name in front; then in another letter case and Unicode form; then without its
    folder or its suffix. Of the path of another machine, the end may mean a file. Only what fits
    exactly one file counts.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._real = Path(os.path.realpath(root))

    def find(self, name: str) -> str | None:
        """Return the file that `name` means, relative to the folder; None if that is not clear."""
        if self._inside(name) and self._is_file(name):
            return name
        spellings = [spelling for spelling in self._spellings(name) if self._inside(spelling)]
        for spelling in spellings:
            if self._is_file(spelling):
                return spelling
        plain = plain_spellings(name)[0]
        of_elsewhere = self._index.at_end_of(plain) if _ABSOLUTE.match(plain) else None
        return self._index.find(spellings) or of_elsewhere

    def nearest(self, name: str) -> str | None:
        """Return the file whose name is most similar to that of a missing one."""
        return self._index.nearest(name)

    def _spellings(self, name: str) -> Iterator[str]:
        """Yield `name` in the plain forms that other systems' spellings of it may mean."""
        for variant in plain_spellings(name):
            path = PurePosixPath(posixpath.normpath(variant))
            # ../images/x.jpg, seen from a folder beside the images
            path = PurePosixPath(*itertools.dropwhile(lambda part: part == "..", path.parts))
            for root in (self._root, self._real):
                if path.is_absolute() and path.is_relative_to(root.as_posix()):
                    path = path.relative_to(root.as_posix())
            if not path.name:
                continue
            yield str(path)
            # train2017/x.jpg where the folder itself is train2017
            tail = self._real.parts
            for count in range(1, min(len(path.parts), len(tail) + 1)):
                if [*map(fold, tail[-count:])] == [*map(fold, path.parts[:count])]:
                    yield str(PurePosixPath(*path.parts[count:]))

    def _is_file(self, name: str) -> bool:
        # Path.is_file raises if the name is too long or the folder is not readable.
        return os.path.isfile(os.path.join(self._root, name))  # noqa: PTH113, PTH118

    @staticmethod
    def _inside(name: str) -> bool:
        path = PurePosixPath(name)
        return not path.is_absolute() and ".." not in path.parts

    @cached_property
    def _index(self) -> NameIndex:
        return NameIndex(self._walk())

    def _walk(self) -> Iterator[str]:
        for folder, folders, names in walk(self._root):
            folders.sort()
            for name in sorted(names):
                # A table cannot name a file with control characters or bytes that are not UTF-8.
                if not (name.startswith(".") or CONTROL.search(name) or _SURROGATE.search(name)):
                    path = os.path.relpath(os.path.join(folder, name), self._root)  # noqa: PTH118
                    yield PurePosixPath(path).as_posix()


def plain_spellings(name: str) -> list[str]:
    """Return the forms of `name` without quotes, blanks, backslashes, %20, &amp; and a last #1."""
    plain = name.strip(_INVISIBLE).replace("\\", "/")
    variants = [plain]
    if "%" in plain:
        variants.append(unquote(plain))
    if "&" in plain:
        variants.append(html.unescape(plain))
    return variants + [short for v in variants if (short := re.sub(r"#\d+$", "", v)) != v]


def match_names(records: Iterable[Record], root: Path) -> tuple[list[Record], list[str]]:
    """Return the records with the names of the files on disk, and remarks.

    A name that fits no file stays as it is. Records without ids that mean the same file become one.

    Raises:
        UserError: a name is no string or an id no integer, or two spellings of a picture are in
            different splits.
    """
    names, records = PictureNames(root), list(records)
    for record in records:
        if not isinstance(record.file_name, str):
            raise UserError(f"expected the file name of an image, found {record.file_name!r:.80}")
        if record.id is not None and not isinstance(record.id, int):
            raise UserError(
                f"expected a non-negative integer as the id of {record.file_name}, found "
                f"{record.id!r:.80}"
            )
    found = {r.file_name: names.find(r.file_name) for r in records}
    exact = {name for name, file in found.items() if name == file}
    claims = Counter(file for name, file in found.items() if file and name != file)
    changed: dict[str, str] = {}
    real = os.path.realpath(root)
    for name, file in found.items():
        if file is None or name == file:
            continue
        # "1.jpg" is not b/1.jpg if the table names b/1.jpg too: then another picture is meant.
        guessed = _is_guessed(name, file, real)
        if not guessed or (file not in exact and claims[file] == 1):
            changed[name] = file
    if not changed:
        return records, []
    examples = [f"{name!r} is {file}" for name, file in list(changed.items())[:3]]
    remark = f"{len(changed)} file names are spelled differently on disk: {', '.join(examples)}"
    return _merged(records, changed), [remark + (", ..." if len(changed) > 3 else "")]


def _merged(records: list[Record], changed: Mapping[str, str]) -> list[Record]:
    numbered: list[Record] = []
    merged: dict[str, Record] = {}
    for record in records:
        name = changed.get(record.file_name, record.file_name)
        if record.id is not None:
            numbered.append(replace(record, file_name=name))
            continue
        before = merged.get(name)
        if before is None:
            merged[name] = replace(record, file_name=name)
            continue
        if before.split != record.split and before.split and record.split:
            raise UserError(
                f"{record.file_name} is in the split {record.split} and, spelled {name}, in "
                f"{before.split}"
            )
        merged[name] = replace(
            before,
            split=before.split or record.split,
            captions=before.captions + record.captions,
        )
    return [*numbered, *merged.values()]


def _is_guessed(name: str, file: str, root: str) -> bool:
    """Whether a file was found in other folders than those that `name` mentions."""
    plain = name.replace("\\", "/")
    if _ABSOLUTE.match(plain):
        return not PurePosixPath(plain).is_relative_to(root)
    return "/" in file and "/" not in plain


def _only(files: list[str] | None) -> str | None:
    return files[0] if files is not None and len(files) == 1 else None


def fold(name: str) -> str:
    """Return the form in which names are compared: whatever letter case, Unicode form and blanks.

    macOS puts a narrow no-break space before the AM of its screenshots.
    """
    blanks = " ".join(name.split())
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", blanks).casefold())
