"""A folder of pictures as a shard: its pictures, and the captions beside them."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from features.folders import find_pictures, folder_passed_over
from features.generated_texts import is_registry
from features.kinds import PICTURE_SUFFIXES, suffix_kind
from features.remote_files import file_system, is_url, is_web, reason
from features.shard_captions import OTHER_TEXT, TEXTS, extension_of
from features.shards import SUFFIXES, ShardError


def names_in(folder: str, passed_over: Counter[str]) -> tuple[list[str], list[str]]:
    """Return the paths in a folder of its pictures, and of the files that belong to them.

    These are texts named as a picture, and records of generated texts.

    Args:
        folder: its path or URL.
        passed_over: counts the files and folders of each kind that are left out.

    Raises:
        ShardError: it cannot be listed.
    """
    return (_remote_names if is_url(folder) else _local_names)(folder, passed_over)


def _local_names(folder: str, passed_over: Counter[str]) -> tuple[list[str], list[str]]:
    if not os.path.isdir(folder):  # noqa: PTH112
        raise ShardError(f"expected a folder, or a file that ends in {', '.join(SUFFIXES)}")
    found = find_pictures([Path(folder)])
    if found.closed:
        path, error = found.closed[0]
        raise ShardError(f"cannot open {path}: {error.strerror}")
    passed_over += found.passed_over
    names = [os.path.relpath(path, folder) for path in found.pictures]
    folders = sorted({os.path.dirname(name) for name in names})  # noqa: PTH120
    files = (
        os.path.join(parent, entry.name)  # noqa: PTH118
        for parent in folders
        for entry in os.scandir(os.path.join(folder, parent))  # noqa: PTH118
        if entry.is_file()  # reading a pipe would wait for ever
    )
    return names, _beside(names, files, passed_over)


def _beside(pictures: Iterable[str], files: Iterable[str], passed_over: Counter[str]) -> list[str]:
    """Return which files of folders belong to their pictures: texts, and the record of texts."""
    keys = {os.path.splitext(name)[0] for name in pictures}  # noqa: PTH122
    found = []
    for name in sorted(files):
        key, suffix = os.path.splitext(name)  # noqa: PTH122
        file = name.rpartition("/")[2]
        if is_registry(file) or (key in keys and suffix[1:].lower() in TEXTS):
            found.append(name)
        elif suffix[1:].lower() in TEXTS and not file.startswith("."):
            passed_over[OTHER_TEXT] += 1
    return found


def _remote_names(url: str, passed_over: Counter[str]) -> tuple[list[str], list[str]]:
    """Return the same of a folder at a URL, where the same folders are passed over."""
    if is_web(url):
        raise ShardError("a web server's folder cannot be listed; put the pictures into a tar")
    system = file_system(url)
    try:
        start = len(system._strip_protocol(url).rstrip("/")) + 1
        names = _readable(sorted(path[start:] for path in system.find(url)), passed_over)
    except Exception as error:  # each file system has exceptions of its own
        raise ShardError(f"it cannot be listed: {reason(error)}") from error
    pictures = [name for name in names if f".{extension_of(name)}" in PICTURE_SUFFIXES]
    for name in names:
        if f".{extension_of(name)}" not in PICTURE_SUFFIXES and extension_of(name) not in TEXTS:
            passed_over[suffix_kind(PurePosixPath(name)) or "file that is no picture"] += 1
    return pictures, _beside(pictures, names, passed_over)


def _readable(names: Iterable[str], passed_over: Counter[str]) -> list[str]:
    """Return the paths without those below folders that are passed over, which are counted."""
    found, closed = [], {}
    for name in names:
        path = PurePosixPath(name)
        for folder in reversed(path.parents[:-1]):
            if kind := folder_passed_over(folder.name, folder.parent):
                closed[folder] = kind
                break
        else:
            if not path.name.startswith("._"):  # metadata written by macOS
                found.append(name)
    passed_over += Counter(closed.values())
    return found
