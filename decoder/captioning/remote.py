"""Pictures that are no files yet: from standard input, or from the web."""

import sys
import time
from collections.abc import Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from string import punctuation
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import Request, url2pathname, urlopen

from features.errors import UserError
from features.images import PictureError
from features.kinds import LONGEST, kind_of, starts_as_picture

STDIN = "-"
MOST_BYTES = 50 * 2**20
TIMEOUT = 20.0  # seconds without an answer
TIME_LIMIT = 120.0  # seconds for a picture
_CHUNK = 2**16
# Some servers refuse programs that do not say what they are.
_HEADERS = {"User-Agent": "caption-pipeline", "Accept": "image/*"}


def is_remote(picture: str) -> bool:
    """Whether a picture is on standard input or on the web, rather than in a file."""
    return picture == STDIN or picture.lower().startswith(("http://", "https://"))


class Fetched(NamedTuple):
    """Pictures saved to files."""

    paths: list[Path]
    """What was given, with the files of remote pictures in their place."""
    names: dict[Path, str]
    """How each remote picture was given, by its file."""
    failed: list[tuple[Path, PictureError]]
    """The remote pictures that could not be fetched, whose files are missing, and why."""


def fetch(given: Sequence[str], folder: Path) -> Fetched:
    """Save the remote ones of the pictures `given` to `folder`, each once.

    Raises:
        UserError: standard input is a terminal.
    """
    fetched = Fetched([], {}, [])
    for number, picture in enumerate(dict.fromkeys(given)):
        if not is_remote(picture):
            # File managers copy a path as file:///photos/a%20b.jpg.
            is_file_url = picture.lower().startswith("file://")
            local = url2pathname(urlsplit(picture).path) if is_file_url else picture
            fetched.paths.append(Path(local))
            continue
        path = folder / str(number)
        try:
            content = _standard_input() if picture == STDIN else _download(picture)
            path.write_bytes(content)
            fetched.paths.append(path)
        except PictureError as error:
            fetched.failed.append((path, error))
        fetched.names[path] = picture
    return fetched


def _standard_input() -> bytes:
    if sys.stdin is None or sys.stdin.isatty():
        raise UserError(
            "- stands for a picture on standard input, which is a terminal here; pipe a picture "
            "into the command, as in: caption - < photo.jpg"
        )
    content = sys.stdin.buffer.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise PictureError(f"more than {MOST_BYTES // 2**20} MB")
    return content


def _download(address: str) -> bytes:
    """Return what is at a web address.

    Raises:
        PictureError: nothing answers, the answer is an error, is too large or slow, or its first
            bytes are those of something else than a picture.
    """
    try:
        # Browsers and people leave spaces and letters of all languages as they are.
        parts = urlsplit(address)
        path, query = (quote(part, safe=punctuation) for part in (parts.path, parts.query))
        request = Request(parts._replace(path=path, query=query).geturl(), headers=_HEADERS)
        # Redirections lead to http, https or ftp; urllib refuses all others.
        with urlopen(request, timeout=TIMEOUT) as response:
            if not isinstance(response, HTTPResponse):
                raise PictureError("it redirects to what is no web address")
            return _content(response)
    except HTTPError as error:
        error.close()
        said = str(error.reason).partition("\n")[0]
        raise PictureError(f"the server answered {error.code} {said}") from error
    except (OSError, HTTPException, ValueError) as error:  # also an address that is malformed
        reason = getattr(error, "reason", None) or error
        raise PictureError(f"cannot download it ({reason})", passing=True) from error


def _content(response: HTTPResponse) -> bytes:
    content = bytearray()
    checked = False
    end = time.monotonic() + TIME_LIMIT
    while chunk := response.read1(_CHUNK):  # what has arrived, so that the time is checked
        content += chunk
        if len(content) > MOST_BYTES:
            raise PictureError(f"more than {MOST_BYTES // 2**20} MB")
        if time.monotonic() > end:
            raise PictureError(f"the download takes more than {TIME_LIMIT:g} s", passing=True)
        if not checked and len(content) >= LONGEST:
            start, checked = bytes(content[:LONGEST]), True
            if not starts_as_picture(start) and (kind := kind_of(start)) is not None:
                raise PictureError(f"not a picture but {kind.name}")
    return bytes(content)
