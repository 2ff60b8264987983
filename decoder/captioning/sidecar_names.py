"""The files beside a picture that have the same name but for the suffix."""

import os
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from unicodedata import normalize

from features.kinds import PICTURE_SUFFIXES

# Files that describe or accompany a picture; any other photo.* may be a picture or a video.
_COMPANIONS = {
    *(".xmp", ".txt", ".json", ".csv", ".html", ".md", ".caption", ".tags", ".npy", ".npz"),
    *(".aae", ".bak", ".cos", ".dop", ".log", ".on1", ".pp3", ".thm", ".xml", ".yaml", ".yml"),
}


def is_picture(name: str) -> bool:
    """Whether a file is a picture by its name."""
    return Path(name).suffix.lower() in PICTURE_SUFFIXES


def may_own(name: str) -> bool:
    """Whether a file may have a sidecar of its own."""
    return Path(name).suffix.lower() not in _COMPANIONS


class Neighbours:
    """The names in the folders of pictures; each folder is listed once.

    A name matches however its accents are encoded: macOS and Linux differ there.
    """

    def __init__(self) -> None:
        self._folders: dict[Path, dict[str, list[str]]] = {}

    def file(self, picture: Path, name: str) -> Path | None:
        """Return a file of that name, its suffix in small letters or capitals, if there is one."""
        stem, suffix = os.path.splitext(name)  # noqa: PTH122
        found = [each for each in self._of(picture, stem) if each.lower().endswith(suffix)]
        return picture.with_name(max(found)) if found else None  # rather small than capital

    def of_stem(self, picture: Path) -> list[str]:
        """Return the names of the other files with the picture's stem."""
        own = normalize("NFC", picture.name)
        return [name for name in self._of(picture, picture.stem) if normalize("NFC", name) != own]

    def _of(self, picture: Path, stem: str) -> list[str]:
        folder = picture.parent
        if folder not in self._folders:
            stems = self._folders[folder] = defaultdict(list)
            with suppress(OSError):  # the picture cannot be read either, which is reported
                for name in sorted(os.listdir(folder)):  # noqa: PTH208
                    stems[normalize("NFC", Path(name).stem)].append(name)
        return self._folders[folder].get(normalize("NFC", stem), [])
