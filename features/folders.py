"""The pictures in folders: what is read, and what is passed over and counted."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import NamedTuple

from features.errors import unreadable
from features.images import can_read
from features.kinds import PICTURE_SUFFIXES, starts_as_picture, suffix_kind

# Thumbnails, previews and trash of photo programs, operating systems and network disks, in any
# case. Hidden folders, such as .thumbnails and .Trash-1000, are passed over too.
_FOLDERS = {
    "@eadir": "thumbnails",  # Synology
    "@tmp": "trash",
    "#recycle": "trash",
    "#snapshot": "snapshots",
    "@recycle": "trash",  # QNAP
    "@recently-snapshot": "snapshots",
    "__macosx": "metadata",
    "$recycle.bin": "trash",
    "recycler": "trash",
    "recycled": "trash",
    "system volume information": "system",
    "lost+found": "trash",
    "lost.dir": "trash",  # Android
    "network trash folder": "trash",  # macOS, on network disks
    "temporary items": "trash",
    "trashbox": "trash",  # Buffalo
    "~snapshot": "snapshots",  # NetApp
    "files_trashbin": "trash",  # Nextcloud and ownCloud
    "files_versions": "earlier versions",
    "thmbnl": "thumbnails",  # Sony's cameras, of videos
}
_FOLDER_SUFFIXES = {".lrdata": "previews", ".lrcat-data": "previews"}  # Lightroom
_TRASHED_FILES = (".trashed-", ".pending-")  # Android, beside the other pictures
# Not opened to see whether they are pictures, because there may be one beside each picture.
_OTHER_FILES = {".aae", ".csv", ".db", ".html", ".ini", ".json", ".jsonl", ".txt", ".xml", ".xmp"}
# In a library of Apple's Photos, iPhoto or Aperture, only `_ORIGINALS` hold what people imported.
_LIBRARIES = {".photoslibrary", ".photolibrary", ".migratedphotolibrary", ".aplibrary"}
_ORIGINALS = {"originals", "masters"}


class Found(NamedTuple):
    """What was found in files and folders."""

    pictures: list[Path]
    """Each picture once, under the first of its names."""
    passed_over: Counter[str]
    """Number of files and folders of each kind that were not read."""
    closed: list[tuple[Path, OSError]]
    """Folders that cannot be opened, and why."""


def find_pictures(given: Iterable[Path]) -> Found:
    """Return the files given, and the pictures in the folders given and below them.

    Pictures are those with a suffix in `PICTURE_SUFFIXES`, and files without a suffix that start
    like one. Those with another suffix, such as .jpg_original, are counted. Linked folders are
    followed, and each folder is read once, under its own name rather than a link's. A picture that
    is given or linked twice is returned once.
    """
    found = Found([], Counter(), [])
    seen: set[str] = set()
    for path in given:
        inside = _pictures(path, found) if os.path.isdir(path) else (path,)  # noqa: PTH112
        for picture in inside:
            if (real := real_path(picture)) not in seen:
                seen.add(real)
                found.pictures.append(picture)
    return found


def walk(folder: Path, followlinks: bool = False) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield as `os.walk` does, which by itself leaves out what it cannot open.

    A folder that is passed over in any case, such as lost+found, may be closed.

    Raises:
        UserError: a folder cannot be opened.
    """

    def refuse(error: OSError) -> None:
        path = Path(error.filename)
        if path == folder or folder_passed_over(path.name, path.parent) is None:
            raise unreadable(path, error) from error

    return os.walk(folder, onerror=refuse, followlinks=followlinks)


def real_path(path: Path) -> str:
    """Return the absolute path of a file without links; it need not exist."""
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):  # a name that is too long or has a null character
        return os.path.abspath(path)  # noqa: PTH100


def _pictures(given: Path, found: Found) -> Iterator[Path]:
    """Yield the pictures below a folder in the order of their names, those behind links last."""
    seen: set[str] = set()
    links = [given]
    for link in links:  # grows in the loop
        stack = [(link, True)]  # not recursion: folders can be nested deeper than calls
        while stack:
            path, is_folder = stack.pop()
            if not is_folder:
                if _is_picture(path, found.passed_over):
                    yield path
                continue
            if (real := real_path(path)) in seen:
                continue
            seen.add(real)
            try:
                with os.scandir(path) as entries:
                    inside = sorted(entries, key=lambda entry: entry.name, reverse=True)
            except OSError as error:
                found.closed.append((path, error))
                continue
            for entry in inside:
                if not _is_folder(entry):
                    stack.append((path / entry.name, False))
                elif kind := folder_passed_over(entry.name, path):
                    found.passed_over[kind] += 1
                elif not entry.is_symlink():
                    stack.append((path / entry.name, True))
                else:
                    links.append(path / entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def folder_passed_over(name: str, parent: PurePath) -> str | None:
    """Return the kind of a folder whose pictures are not read, or None if they are."""
    name = name.casefold()
    kind = _FOLDERS.get(name) or _FOLDER_SUFFIXES.get(Path(name).suffix)
    if kind:
        return f"folder of {kind}"
    if name.startswith("appdata_oc"):  # Nextcloud and ownCloud
        return "folder of previews"
    if name.startswith("."):
        return "hidden folder"
    if parent.suffix.casefold() in _LIBRARIES and name not in _ORIGINALS:
        return "folder of previews"
    return None


def _is_picture(path: Path, passed_over: Counter[str]) -> bool:
    """Whether a file in a folder is a picture; if it is not but might be missed, count it."""
    if path.name.startswith("._"):  # metadata written by macOS
        return False
    if path.name.startswith(_TRASHED_FILES):
        passed_over["picture in the trash"] += 1
        return False
    suffix = path.suffix.lower()
    kind = suffix_kind(path)
    if suffix in PICTURE_SUFFIXES:
        if not os.path.lexists(path) or os.path.isfile(path):  # noqa: PTH113
            kind = can_read(suffix)
        elif path.is_symlink():
            kind = "link to a file that is missing"
        else:  # a pipe or a device
            return False
        if kind is None:
            return True
    elif not suffix and _starts_as_picture(path):
        return True
    elif kind is None and suffix not in _OTHER_FILES and _starts_as_picture(path):
        kind = f"picture named *{suffix} (read if given by name)"
    if kind is not None:
        passed_over[kind] += 1
    return False


def _starts_as_picture(path: Path) -> bool:
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            return False
        with path.open("rb") as file:
            return starts_as_picture(file.read(32))
    except OSError:
        return False


def passed_over_note(passed_over: Counter[str]) -> str:
    """Return the number of files and folders of each kind as text, the most frequent first."""
    return ", ".join(f"{number:,} x {kind}" for kind, number in passed_over.most_common())
