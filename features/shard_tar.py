"""The members of a tar archive, as webdataset and img2dataset write them, without unpacking it.

Nothing is ever extracted: a picture is read later from its place in the archive. So a member's name
cannot lead outside a folder. All the same an archive with such a name is refused, like every
archive with members that no data set has: links, devices, sparse files, absurd sizes.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from isal import igzip, igzip_lib

from features.kinds import LONGEST, kind_of
from features.remote_files import TransferError, chunks

_BLOCK = 512
_MAX_HEADERS = 2**20  # bytes of extended headers before a member; a path has some hundreds
_MAX_MEMBERS = 2_000_000
_MAX_GLOBAL_HEADERS = 100
_GZIP = b"\x1f\x8b"
# Pictures hardly compress, so a gzip file that grows a lot is made to fill the disk.
_MAX_RATIO, _ALWAYS_ALLOWED = 20, 2**30


class Member(NamedTuple):
    """A regular file in an archive, and where its content lies."""

    name: str
    start: int
    bytes: int


class TarError(Exception):
    """An archive that is damaged or must not be read; the message is the reason."""


def is_gzip(path: Path) -> bool:
    """Whether a file is compressed by gzip; OSError is passed on."""
    with path.open("rb") as file:
        return file.read(len(_GZIP)) == _GZIP


def inflate(path: Path, target: Path) -> None:
    """Write the decompressed content of the gzip file `path` to `target`.

    Raises:
        TarError: the file is damaged, truncated, or grows to more than a gigabyte and 20 times its
            size.
        OSError: `target` cannot be written, or `path` cannot be read.
    """
    most = max(_ALWAYS_ALLOWED, _MAX_RATIO * path.stat().st_size)
    try:
        with igzip.open(path, "rb") as source, target.open("wb") as into:
            for data in chunks(source, most):
                into.write(data)
    except TransferError as error:
        raise TarError(f"a decompression bomb: {error}") from error
    except (EOFError, igzip_lib.IsalError, igzip.BadGzipFile) as error:  # type: ignore[misc]
        raise TarError(f"its gzip compression is damaged or cut off ({error})") from error


def members(path: Path) -> Iterator[Member]:
    """Yield the regular files of an uncompressed tar archive, in their order.

    Raises:
        TarError: the archive is damaged, truncated or hostile.
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        headers = _Headers(file, size)
        try:
            with tarfile.open(fileobj=headers, mode="r:") as tar:  # type: ignore[call-overload]
                yield from _members(tar, headers, size)
        except (tarfile.TarError, RecursionError, ValueError, OverflowError) as error:
            raise TarError(_explained(error, headers, path)) from error


def _members(tar: tarfile.TarFile, headers: "_Headers", size: int) -> Iterator[Member]:
    count = end = 0
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
        headers.budget = _MAX_HEADERS
        count += 1
        if count > _MAX_MEMBERS:
            raise TarError(f"more than {_MAX_MEMBERS:,} members")
        if len(tar.pax_headers) > _MAX_GLOBAL_HEADERS:
            raise TarError("more global headers than any data set has")
        name = _checked_name(member)
        held = member.size if member.isreg() else 0
        if held < 0 or member.offset_data + held > size:
            raise TarError(f"cut off: {name!r} ends beyond the end of the file")
        end = member.offset_data + -(-held // _BLOCK) * _BLOCK
        if member.isreg():
            yield Member(name, member.offset_data, held)
    headers.expect_end(end)


def _checked_name(member: tarfile.TarInfo) -> str:
    name = "/".join(part for part in member.name.split("/") if part not in ("", "."))
    shown = member.name[:200]
    if member.name.startswith("/") or ".." in member.name.split("/"):
        raise TarError(f"the member {shown!r} leads outside a folder")
    if member.islnk() or member.issym():
        raise TarError(f"the member {shown!r} is a link")
    if member.issparse():
        raise TarError(f"the member {shown!r} is sparse")
    if not member.isreg() and not member.isdir():
        raise TarError(f"the member {shown!r} is neither a file nor a folder")
    return name


def _explained(error: Exception, headers: "_Headers", path: Path) -> str:
    if isinstance(error, RecursionError):
        return "headers of headers without end"
    if headers.moved:
        return f"damaged or cut off at byte {headers.tell():,} ({error})"
    with path.open("rb") as file:
        start = file.read(LONGEST)
    kind = None if start[257:262] == b"ustar" else kind_of(start)
    return f"not a tar archive but {kind.name}" if kind else f"not a tar archive ({error})"


class _Headers:
    """What `tarfile` reads of an archive: its headers, of bounded size, from the start to the end.

    Args:
        file: the archive.
        size: its size in bytes.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self.budget = _MAX_HEADERS
        self.moved = False
        """Whether a first header was read and passed."""

    def read(self, count: int) -> bytes:
        self.budget -= count
        if self.budget < 0 or count < 0:
            raise TarError(f"a header of more than {_MAX_HEADERS:,} bytes")
        return self._file.read(count)

    def seek(self, place: int) -> None:
        # One byte back is how `tarfile` finds out whether a file is cut off.
        if place < self._file.tell() - _BLOCK:
            raise TarError("a header that leads backwards")
        if place > self._size:
            raise TarError("cut off in its last member")
        self.moved = self.moved or place > 0
        self._file.seek(place)

    def tell(self) -> int:
        return self._file.tell()

    def expect_end(self, end: int) -> None:
        """Raise TarError unless zeros follow byte `end`: the mark that an archive is complete."""
        self._file.seek(end)
        block = self._file.read(_BLOCK)
        if not block:
            raise TarError("cut off: the mark at its end is missing")
        while block:
            if block.strip(b"\0"):
                raise TarError(f"damaged, or followed by other data, behind byte {end:,}")
            block = self._file.read(2**20)
