"""Shards: pieces of a large collection of pictures, each of which becomes one output.

A shard is a tar archive as webdataset and img2dataset write it, a folder of pictures, or a parquet
list of the paths of pictures. `features.shard_samples` reads them.
"""

import glob
import hashlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from features.errors import UserError, first_few, unreadable
from features.extras import need
from features.folders import folder_passed_over
from features.remote_files import (
    Stamp,
    file_system,
    is_url,
    is_web,
    reason,
    shown,
    stamp,
    url_path,
)

_MAX_SHARDS = 10_000_000
SUFFIXES = (".tar", ".tar.gz", ".tgz", ".parquet")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class ShardError(Exception):
    """A shard that cannot be used; the message is the reason, without the name of the shard."""


@dataclass(frozen=True)
class Shard:
    """One shard, which need not exist.

    Attributes:
        name: its file name without suffix, or that of its folder; what its outputs are called.
        source: absolute local path, or URL.
        listed: the stamp of a remote file in the listing by which it was found.
    """

    name: str
    source: str
    listed: Stamp | None = field(default=None, compare=False)

    @property
    def suffix(self) -> str:
        """Which of ".tar", ".tar.gz", ".tgz" and ".parquet" it has; of a folder, nothing."""
        return _suffix(self.source)

    def __str__(self) -> str:
        return f"{self.name} ({shown(self.source)})"

    def stamp(self) -> Stamp:
        """Return the size of its file, and of a remote one the version.

        Of a folder, and of a file that cannot be asked now, there is neither.
        """
        try:
            if not self.suffix:
                return Stamp()
            if is_url(self.source):
                return self.listed or stamp(file_system(self.source).info(self.source))
            return Stamp(Path(self.source).stat().st_size)
        except Exception:  # each file system has exceptions of its own
            return Stamp()

    def modified(self) -> int | None:
        """Return when its local file was modified, in nanoseconds since 1970, or None."""
        if not self.suffix or is_url(self.source):
            return None
        try:
            return Path(self.source).stat().st_mtime_ns
        except OSError:
            return None

    def sha256(self) -> str | None:
        """Return the SHA-256 of its local file; of a folder, that of the names and sizes in it.

        Of a folder only pictures and their captions count. None if it is remote, missing, an empty
        folder, or cannot be read now.
        """
        if is_url(self.source) or not os.path.exists(self.source):  # noqa: PTH110
            return None
        try:
            if os.path.isfile(self.source):  # noqa: PTH113 - reading a pipe would wait for ever
                with Path(self.source).open("rb") as file:
                    return hashlib.file_digest(file, "sha256").hexdigest()
            digest = hashlib.sha256()
            if not (files := _files(self.source)):
                return None
            for file_name, size in files:
                digest.update(os.fsencode(file_name) + b"\0%d\0" % size)
            return digest.hexdigest()
        except (OSError, ShardError):
            return None


def find_shards(patterns: Sequence[str]) -> list[Shard]:
    """Return the shards that patterns name, each of them once, in order.

    A pattern is a local path or a URL with braces, {000..199} or {train,val}, and the wildcards
    ``*``, ``?``, ``[...]`` and ``**``. Wildcards match what exists; braces alone name shards
    whether or not they exist.

    Raises:
        UserError: a pattern matches nothing, names a file that is no shard, or cannot be listed;
            or two shards would have the same outputs.
    """
    shards: dict[str, Shard] = {}
    for source, listed in itertools.chain.from_iterable(map(_matches, patterns)):
        name = _name(source)
        folded = name.casefold()  # some disks do not tell upper from lower case
        other = shards.setdefault(folded, Shard(name, source, listed))
        if other.source != source:
            raise UserError(
                f"the shards {shown(other.source)} and {shown(source)} are both called {name}, so "
                "their outputs would be too; give --shards a narrower pattern, such as 'data/*.tar'"
            )
    return list(shards.values())


def expand_braces(pattern: str) -> Iterator[str]:
    """Yield what a pattern stands for: {000..199} and {a,b}, as a shell and webdataset expand them.

    Numbers keep their zeros, {0..9..3} has a step, and braces may be nested. Other braces stay.
    """
    for start in (place for place, letter in enumerate(pattern) if letter == "{"):
        end, parts = _parts(pattern, start)
        alternatives = _numbers(parts[0]) if len(parts) == 1 else parts
        if not alternatives:
            continue
        for alternative in alternatives:
            for middle in expand_braces(alternative):
                for rest in expand_braces(pattern[end:]):
                    yield pattern[:start] + middle + rest
        return
    yield pattern


def _parts(pattern: str, start: int) -> tuple[int, list[str]]:
    """Return where the brace opened at `start` ends, and what its commas divide; or no parts."""
    depth, cuts = 0, [start]
    for place in range(start, len(pattern)):
        depth += {"{": 1, "}": -1}.get(pattern[place], 0)
        if depth == 0:
            ends = [*cuts[1:], place]
            return place + 1, [pattern[a + 1 : b] for a, b in zip(cuts, ends, strict=True)]
        if depth == 1 and pattern[place] == ",":
            cuts.append(place)
    return len(pattern), [""]


def _numbers(text: str) -> Iterable[str]:
    """Return the numbers of a range such as 000..199, one by one; nothing if it is none."""
    numbers = re.fullmatch(r"(\d{1,12})\.\.(\d{1,12})(?:\.\.(\d{1,12}))?", text)
    if not numbers:
        return ()
    first, last, step = int(numbers[1]), int(numbers[2]), int(numbers[3] or 1) or 1
    padded = any(len(n) > 1 and n[0] == "0" for n in numbers.groups()[:2])
    width = max(map(len, numbers.groups()[:2])) if padded else 0
    sign = 1 if first <= last else -1
    return (f"{n:0{width}d}" for n in range(first, last + sign, sign * step))


def _matches(pattern: str) -> Iterator[tuple[str, Stamp | None]]:
    """Yield the absolute path or URL of each shard of a pattern, and its stamp in a listing."""
    if not is_url(pattern):
        pattern = os.path.expanduser(pattern)  # noqa: PTH111 - the shell does not, in quotes
        if os.path.exists(pattern):  # noqa: PTH110 - whatever braces and brackets it has
            yield os.path.abspath(pattern), None  # noqa: PTH100
            return
    elif not pattern.startswith("file://"):
        need("fsspec")  # otherwise every shard would be called broken
    for count, one in enumerate(expand_braces(pattern)):
        if count == _MAX_SHARDS:
            raise UserError(f"--shards {shown(pattern)} names more than {_MAX_SHARDS:,} shards")
        one = one.removeprefix("file://")
        # The question mark of a web address starts its query.
        wild = "*" in url_path(one) if is_web(one) else glob.has_magic(one)
        if not wild or (not is_url(one) and os.path.exists(one)):  # noqa: PTH110
            yield one if is_url(one) else os.path.abspath(one), None  # noqa: PTH100
            continue
        found = _glob_remote(one) if is_url(one) else dict.fromkeys(_glob_local(one))
        if not found:
            raise UserError(
                f"--shards {shown(pattern)} matches nothing; check the path, and quote the pattern "
                "so that the shell does not expand it"
            )
        yield from found.items()


def _glob_local(pattern: str) -> list[str]:
    _check_open(pattern)
    found = sorted(map(os.path.abspath, glob.glob(pattern, recursive=True)))  # noqa: PTH207
    strange = [path for path in found if not _suffix(path) and not os.path.isdir(path)]  # noqa: PTH112
    if strange:
        raise UserError(
            f"--shards {pattern}: expected archives ({', '.join(SUFFIXES)}) or folders, found "
            f"{first_few(strange, 3)}; give a narrower pattern, such as 'data/*.tar'"
        )
    return found


def _check_open(pattern: str) -> None:
    """Raise UserError if a folder that `pattern` searches cannot be opened: glob leaves it out."""
    parts = pattern.split("/")
    for number, part in enumerate(parts):
        if not glob.has_magic("/".join(parts[: number + 1])):
            continue
        above = "/".join([*parts[: number + (part == "**")], ""]) or "."
        for folder in glob.glob(above, recursive=True):  # noqa: PTH207
            try:
                if glob.has_magic(part):
                    os.scandir(folder).close()
                else:
                    os.stat(os.path.join(folder, part))  # noqa: PTH116, PTH118
            except (FileNotFoundError, NotADirectoryError):
                continue  # it is not there
            except OSError as error:
                path = Path(folder)
                if folder_passed_over(path.name, path.parent) is None:
                    raise unreadable(path, error) from error


def _glob_remote(pattern: str) -> dict[str, Stamp]:
    if is_web(pattern):
        raise UserError(
            f"--shards {shown(pattern)}: a web server cannot be listed; name the shards with "
            "braces, such as {00000..00099}.tar"
        )
    system = file_system(pattern)
    try:
        found = sorted(system.glob(pattern, detail=True).items())
        return {system.unstrip_protocol(path): stamp(about) for path, about in found}
    except Exception as error:  # each file system has exceptions of its own
        raise UserError(f"--shards {shown(pattern)} cannot be listed: {reason(error)}") from error


def _files(folder: str) -> list[tuple[str, int]]:
    """Return the path in a folder, and the size, of each of its pictures and their captions."""
    from features.shard_folders import names_in  # which imports this module

    pictures, texts = names_in(folder, Counter())
    return sorted((name, Path(folder, name).stat().st_size) for name in (*pictures, *texts))


def _suffix(source: str) -> str:
    path = url_path(source) if is_url(source) else source
    return next((suffix for suffix in SUFFIXES if path.lower().endswith(suffix)), "")


def _name(source: str) -> str:
    path = url_path(source) if is_url(source) else source
    last = path.rstrip("/").rpartition("/")[2]
    name = last[: len(last) - len(_suffix(source))]
    try:
        size = len(name.encode())
        source.encode()
    except UnicodeEncodeError:
        raise UserError(f"--shards: the name {source!r} is not UTF-8; rename it") from None
    if not name or name.startswith(".") or CONTROL.search(name) or size > 200:
        raise UserError(
            f"--shards: {shown(source)!r} cannot name an output: expected a name of at most 200 "
            "bytes that does not start with a dot"
        )
    return name
