"""Files that may lie elsewhere: on S3, a web server or whatever else fsspec can reach.

A location is the path of a local file, or a URL such as s3://bucket/00000.tar.
"""

import importlib
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import unquote, urlsplit

from features.errors import UserError, first_line
from features.extras import how_to_install

_CONNECT_SECONDS, _SILENT_SECONDS = 30, 60
_LEAST_SPEED = 100_000  # bytes a second, after the first minute
_FIRST_SECONDS = 60
_CHUNK = 2**20
_TRY_LATER = {408, 425, 429}  # HTTP: request timeout, too early, too many requests


class TransferError(Exception):
    """A file that cannot be read or written; the message is the reason, without the location.

    Attributes:
        passing: whether trying again later may help.
    """

    def __init__(self, reason: str, passing: bool = False) -> None:
        super().__init__(reason)
        self.passing = passing


class Stamp(NamedTuple):
    """What a server tells of a file, which changes with its content; None where it does not."""

    bytes: int | None = None
    version: str | None = None
    """Its ETag, or else when it was modified."""


def stamp(about: Mapping[str, Any]) -> Stamp:
    """Return the stamp of a file in what a file system knows of it, which may be a listing."""
    names = ("ETag", "etag", "Last-Modified")
    version = next((str(about[name]) for name in names if about.get(name)), None)
    return Stamp(about.get("size"), version and version.removeprefix("W/").strip('"'))


def is_url(location: str) -> bool:
    """Whether a location is a URL rather than a local path."""
    return re.match(r"[A-Za-z][\w+.:-]*://", location) is not None


def is_web(location: str) -> bool:
    """Whether a location is on a web server, which can be read but neither listed nor written."""
    return location.lower().startswith(("http://", "https://"))


def shown(location: str) -> str:
    """Return a location without a query, user or password, which may be secret."""
    if is_web(location):  # elsewhere ? and # belong to the name
        with suppress(ValueError):
            parts = urlsplit(location)
            own = parts.netloc.rpartition("@")[2]
            return parts._replace(netloc=own, query="", fragment="").geturl()
        location = re.split("[?#]", location)[0]
    return re.sub(r"^([A-Za-z][\w+.:-]*://)[^/]*@", r"\1", location)


def url_path(url: str) -> str:
    """Return the path of a URL; that of a web address without its query and percent signs.

    Raises:
        UserError: it is a web address that cannot be understood.
    """
    if not is_web(url):
        return url.partition("://")[2].partition("/")[2]
    try:
        return unquote(urlsplit(url).path)
    except ValueError as error:
        raise UserError(f"{shown(url)!r} is no web address: {error}") from error


def file_system(url: str) -> Any:
    """Return the file system of fsspec that reaches a URL.

    Raises:
        UserError: the kind of URL is unknown, the package that it needs is not installed, or its
            server cannot be reached.
    """
    from fsspec.core import url_to_fs

    protocol, _, rest = url.partition("://")
    if "::" in url:
        raise UserError(f"{shown(url)}: expected one URL, found several joined by ::")
    options: dict[str, Any] = {}
    try:
        if is_web(url):
            aiohttp = importlib.import_module("aiohttp")
            limits = {"sock_connect": _CONNECT_SECONDS, "sock_read": _SILENT_SECONDS}
            options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(total=None, **limits)}
        # Others write to the same folders, so listings are not kept.
        return url_to_fs(f"{protocol.lower()}://{rest}", use_listings_cache=False, **options)[0]
    except ImportError as error:
        raise UserError(
            f"{shown(url)} needs a package that is not installed ({first_line(error)}); S3 and "
            f"HTTP need {how_to_install('shards')}"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{shown(url)}: {first_line(error)}; expected s3://, https://..."
        ) from error
    except Exception as error:  # FTP and SSH connect at once
        raise UserError(f"{shown(url)} cannot be reached: {reason(error)}") from error


def open_url(url: str) -> BinaryIO:
    """Open a remote file to be read from its start to its end; any exception may be raised."""
    # A web server's answer is read as it comes: a request for each block could be endless.
    options = {"block_size": 0} if is_web(url) else {"cache_type": "readahead"}
    return file_system(url).open(url, "rb", **options)


def chunks(source: BinaryIO, most: int) -> Iterator[bytes]:
    """Yield the content of an open file of at most `most` bytes, piece by piece.

    Raises:
        TransferError: it is larger.
        OSError: it cannot be read.
    """
    read = 0
    while data := source.read(_CHUNK):
        read += len(data)
        if read > most:
            raise TransferError(f"larger than {most:,} bytes")
        yield data


def fetched(url: str, most: int, seconds: float | None = None) -> Iterator[bytes]:
    """Yield the content of a remote file of at most `most` bytes, piece by piece.

    Raises:
        TransferError: it cannot be read, is larger, takes more than `seconds`, or arrives at less
            than 100 kB a second.
    """
    start, arrived = time.monotonic(), 0
    try:
        with open_url(url) as source:
            for data in chunks(source, most):
                arrived += len(data)
                waited = time.monotonic() - start
                if seconds is not None and waited > seconds:
                    raise TransferError(f"not complete after {seconds:.0f} seconds", passing=True)
                if arrived < (waited - _FIRST_SECONDS) * _LEAST_SPEED:
                    slow = f"slower than {_LEAST_SPEED:,} bytes a second"
                    raise TransferError(slow, passing=True)
                yield data
    except TransferError:
        raise
    except Exception as error:  # each file system has exceptions of its own
        error = _cause(error) if is_web(url) else error
        raise TransferError(reason(error), may_pass(error)) from error


def _cause(error: Exception) -> Exception:
    """Return what is behind an exception of fsspec, which calls files missing if a server fails."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or not isinstance(cause, Exception):
        return error
    return error if getattr(cause, "status", None) == 404 else cause


def download(url: str, target: Path, most: int) -> None:
    """Copy a remote file of at most `most` bytes to the local file `target`.

    Raises:
        TransferError: see `fetched`.
        OSError: `target` cannot be written.
    """
    with target.open("wb") as into:
        for data in fetched(url, most):
            into.write(data)


def may_pass(error: Exception) -> bool:
    """Whether what an exception of a file system is about may be over later."""
    status = getattr(error, "status", None)  # of a web server's answer
    if isinstance(status, int):
        return status >= 500 or status in _TRY_LATER
    return not isinstance(error, FileNotFoundError)


def reason(error: Exception) -> str:
    """Return what an exception of a file system says, as one short line."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError) and error.strerror:
        return str(error.strerror)
    status = getattr(error, "status", None)
    if isinstance(status, int):  # its text has the whole address
        return f"the server answered {status}" if status else type(error).__name__
    return f"{type(error).__name__}: {first_line(error)}"
