"""File names as tables write them, matched with the files on disk."""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from features.errors import UserError
from features.kinds import PICTURE_SUFFIXES
from pipeline.readers.records import Record

_INVISIBLE = " \t\r\n\u00a0\u200b\u200e\u200f\u2060\ufeff\"'"


class PictureNames:
    """The files below a folder, found by names that other systems spell differently.

    A name is tried as it is, then without blanks, quotes, "./", backslashes, %20 and the folder's
    own name in front; then in another letter case and Unicode form; then without its folder or its
    suffix. Only what fits exactly one file counts.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files: dict[str, list[str]] | None = None  # by folded path
        self._stems: dict[str, list[str]] = defaultdict(list)  # folded path without the suffix
        self._base_names: dict[str, list[str]] = defaultdict(list)

    def find(self, name: str) -> str | None:
        """Return the file that `name` means, relative to the folder; None if that is not clear."""
        if self._inside(name) and self._is_file(name):
            return name
        spellings = [spelling for spelling in self._spellings(name) if self._inside(spelling)]
        for spelling in spellings:
            if self._is_file(spelling):
                return spelling
        files = self._index()
        by_stem, by_base_name = [], []
        for spelling in spellings:
            folded = _fold(spelling)
            if match := _only(files.get(folded)):
                return match
            if PurePosixPath(folded).suffix not in PICTURE_SUFFIXES:
                by_stem.append(_only(self._stems.get(folded)))
            if "/" not in spelling:
                by_base_name.append(_only(self._base_names.get(folded)))
        return next(filter(None, (*by_stem, *by_base_name)), None)

    def nearest(self, name: str) -> str | None:
        """Return the file whose name is most similar to that of a missing one."""
        files = self._index()
        folded = _fold(name.strip(_INVISIBLE).replace("\\", "/"))
        base_name = PurePosixPath(folded).name
        if same := self._base_names.get(base_name):
            return same[0]
        if same := self._stems.get(str(PurePosixPath(folded).with_suffix(""))) if base_name else []:
            return same[0]
        if len(files) > 20_000:  # comparing with each takes seconds
            return None
        near = get_close_matches(folded, files, n=1, cutoff=0.8)
        return files[near[0]][0] if near else None

    def _spellings(self, name: str) -> Iterator[str]:
        """Yield `name` in the plain forms that other systems' spellings of it may mean."""
        plain = name.strip(_INVISIBLE).replace("\\", "/")
        variants = [plain]
        if "%" in plain:
            variants.append(unquote(plain))
        variants += [stripped for v in variants if (stripped := re.sub(r"#\d+$", "", v)) != v]
        for variant in variants:
            path = PurePosixPath(variant)
            for root in (self._root, Path(os.path.realpath(self._root))):
                if path.is_absolute() and path.is_relative_to(root.as_posix()):
                    path = path.relative_to(root.as_posix())
            if not path.name:
                continue
            yield str(path)
            # train2017/x.jpg where the folder itself is train2017
            tail = Path(os.path.realpath(self._root)).parts
            for count in range(1, min(len(path.parts), len(tail) + 1)):
                if [*map(_fold, tail[-count:])] == [*map(_fold, path.parts[:count])]:
                    yield str(PurePosixPath(*path.parts[count:]))

    def _is_file(self, name: str) -> bool:
        # Path.is_file raises if the name is too long or the folder is not readable.
        return os.path.isfile(os.path.join(self._root, name))  # noqa: PTH113, PTH118

    @staticmethod
    def _inside(name: str) -> bool:
        path = PurePosixPath(name)
        return not path.is_absolute() and ".." not in path.parts

    def _index(self) -> dict[str, list[str]]:
        if self._files is None:
            files = defaultdict(list)
            for folder, folders, names in os.walk(self._root):
                folders.sort()
                for name in sorted(names):
                    # A file name may hold bytes that are not UTF-8; a table cannot name it.
                    if name.startswith(".") or not name.isprintable():
                        continue
                    path = os.path.relpath(os.path.join(folder, name), self._root)  # noqa: PTH118
                    path = PurePosixPath(path).as_posix()
                    folded = _fold(path)
                    files[folded].append(path)
                    if PurePosixPath(folded).suffix in PICTURE_SUFFIXES:
                        self._stems[str(PurePosixPath(folded).with_suffix(""))].append(path)
                        self._base_names[_fold(name)].append(path)
            # A name without its folder may also lack its suffix.
            for stem in [stem for stem in self._stems if "/" in stem]:
                self._base_names[stem.rpartition("/")[2]] += self._stems[stem]
            self._files = files
        return self._files


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
    for name, file in found.items():
        if file is None or name == file:
            continue
        # "1.jpg" is not b/1.jpg if the table names b/1.jpg too: then another picture is meant.
        guessed = _base_name_differs(name, file)
        if not guessed or (file not in exact and claims[file] == 1):
            changed[name] = file
    if not changed:
        return records, []
    examples = [f"{name!r} is {file}" for name, file in list(changed.items())[:3]]
    remark = f"{len(changed)} file names are spelled differently on disk: {', '.join(examples)}"
    return _merged(records, changed), [remark + (", ..." if len(changed) > 3 else "")]


def _merged(records: list[Record], changed: Mapping[str, str]) -> list[Record]:
    merged: dict[tuple[str, int | None], Record] = {}
    for record in records:
        name = changed.get(record.file_name, record.file_name)
        before = merged.get((name, record.id))
        if before is None or record.id is not None:
            merged[name, record.id] = replace(record, file_name=name)
            continue
        if before.split != record.split and before.split and record.split:
            raise UserError(
                f"{record.file_name} is in the split {record.split} and, spelled {name}, in "
                f"{before.split}"
            )
        merged[name, None] = replace(
            before,
            split=before.split or record.split,
            captions=before.captions + record.captions,
        )
    return list(merged.values())


def _base_name_differs(name: str, file: str) -> bool:
    """Whether a file was found in a folder that `name` does not mention."""
    return "/" in file and "/" not in name.replace("\\", "/")


def _only(files: list[str] | None) -> str | None:
    return files[0] if files is not None and len(files) == 1 else None


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
