"""Files that may lie elsewhere: on S3, a web server or whatever else fsspec can reach.

A location is the path of a local file, or a URL such as s3://bucket/00000.tar.
"""

import importlib
import re
import time
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from features.errors import UserError, first_line
from features.extras import how_to_install

_CONNECT_SECONDS, _SILENT_SECONDS = 30, 60
_LEAST_SPEED = 100_000  # bytes a second, after the first minute
_FIRST_SECONDS = 60
_CHUNK = 2**20


class RemoteError(Exception):
    """A file that cannot be read or written; the message is the reason, without the location."""


def is_url(location: str) -> bool:
    """Whether a location is a URL rather than a local path."""
    return re.match(r"[A-Za-z][\w+.:-]*://", location) is not None


def is_web(location: str) -> bool:
    """Whether a location is on a web server, which can be read but neither listed nor written."""
    return location.lower().startswith(("http://", "https://"))


def shown(location: str) -> str:
    """Return a location without a query, user or password, which may be secret."""
    if not is_url(location):
        return location
    parts = urlsplit(location)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def file_system(url: str) -> Any:
    """Return the file system of fsspec that reaches a URL.

    Raises:
        UserError: the kind of URL is unknown, or the package that it needs is not installed.
    """
    import fsspec

    protocol = url.partition("://")[0].lower()
    if "::" in url:
        raise UserError(f"{shown(url)}: expected one URL, found several joined by ::")
    options: dict[str, Any] = {}
    try:
        if is_web(url):
            aiohttp = importlib.import_module("aiohttp")
            limits = {"sock_connect": _CONNECT_SECONDS, "sock_read": _SILENT_SECONDS}
            options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(total=None, **limits)}
        # Others write to the same folders, so listings are not kept.
        return fsspec.filesystem(protocol, use_listings_cache=False, **options)
    except ImportError as error:
        raise UserError(
            f"{shown(url)} needs a package that is not installed ({first_line(error)}); S3 and "
            f"HTTP need {how_to_install('shards')}"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{shown(url)}: {first_line(error)}; expected s3://, https://..."
        ) from error


def open_url(url: str) -> BinaryIO:
    """Open a remote file to be read from its start to its end; any exception may be raised."""
    # A web server's answer is read as it comes: a request for each block could be endless.
    options = {"block_size": 0} if is_web(url) else {"cache_type": "readahead"}
    return file_system(url).open(url, "rb", **options)


def copy_limited(
    source: BinaryIO, target: BinaryIO, most: int, seconds: float | None = None
) -> None:
    """Copy a file of at most `most` bytes in at most `seconds`.

    Raises:
        RemoteError: it is larger, takes longer, or arrives at less than 100 kB a second.
        OSError: `target` cannot be written, or `source` cannot be read.
    """
    start, copied = time.monotonic(), 0
    while data := source.read(_CHUNK):
        copied += len(data)
        if copied > most:
            raise RemoteError(f"larger than {most:,} bytes")
        waited = time.monotonic() - start
        if seconds is not None and waited > seconds:
            raise RemoteError(f"not complete after {seconds:.0f} seconds")
        if copied < (waited - _FIRST_SECONDS) * _LEAST_SPEED:
            raise RemoteError(f"slower than {_LEAST_SPEED:,} bytes a second")
        target.write(data)


def download(url: str, target: Path, most: int) -> None:
    """Copy a remote file of at most `most` bytes to the local file `target`.

    Raises:
        RemoteError: it cannot be read, is larger, or arrives too slowly.
        OSError: `target` cannot be written.
    """
    with target.open("wb") as into:
        try:
            with open_url(url) as source:
                copy_limited(source, into, most)
        except RemoteError:
            raise
        except Exception as error:  # each file system has exceptions of its own
            if isinstance(error, OSError) and error.filename == str(target):
                raise
            raise RemoteError(reason(error)) from error


def reason(error: Exception) -> str:
    """Return what an exception of a file system says, as one short line."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError) and error.strerror:
        return str(error.strerror)
    return f"{type(error).__name__}: {first_line(error)}"
