"""Writing files beside pictures: atomically, in somebody else's folder, among their files."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from features.files import replacing
from features.generated_texts import REGISTRY, is_registry, registered


class LeftAloneError(Exception):
    """A file must not be read or written; the message says why and what to do."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait for other processes of ours that write in `folder`, and keep them out.

    The folder itself is locked, so that no lock file stays among the pictures. Some network disks
    have no locks; files are replaced atomically there too.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read(path: Path, most: int = -1) -> bytes | None:
    """Return at most the first `most` bytes of a file; None if there is none.

    Raises:
        LeftAloneError: it is a folder, a device or a link to nothing.
        OSError: it cannot be read.
    """
    if not os.path.lexists(path):
        return None
    if not path.exists():
        raise LeftAloneError("it is a link to a file that is not there; restore it or delete both")
    if not path.is_file():
        raise LeftAloneError("expected a file, found a folder or a device")
    with path.open("rb") as file:
        return file.read(most)


def check_writable(path: Path) -> None:
    """Raise LeftAloneError if a file, or its folder where it is new, is protected from writing.

    Replacing a file needs no permission to write it, so its owner's wish has to be looked up.
    """
    real = Path(os.path.realpath(path))
    if real.exists() and not (real.stat().st_mode & 0o222 and os.access(real, os.W_OK)):
        raise LeftAloneError("it is read-only; allow writing it, or leave its picture out")
    if not os.access(real.parent, os.W_OK | os.X_OK):
        raise LeftAloneError(f"cannot write in {real.parent}; check its permissions")


def replace_content(path: Path, content: bytes) -> None:
    """Write `content` to a file atomically.

    Its owner, permissions and extended attributes stay, and a link remains a link.

    Raises:
        OSError: it cannot be written; the old file is intact.
    """
    real = Path(os.path.realpath(path))
    with replacing(real) as temporary:
        temporary.write_bytes(content)
        with suppress(FileNotFoundError):
            old = real.stat()
            with suppress(OSError):  # only root may give files away
                os.chown(temporary, old.st_uid, old.st_gid)
            shutil.copystat(real, temporary)
            os.utime(temporary)


Digests = dict[str, set[str]]
"""The names of generated text files, and the SHA-256 of what each may hold."""


def read_registry(folder: Path) -> Digests:
    """Return the text files that we wrote in `folder`, those that were unpacked there included.

    Raises:
        LeftAloneError: a registry is damaged.
        OSError: it cannot be read.
    """
    known: Digests = {}
    for name in filter(is_registry, os.listdir(folder)):  # noqa: PTH208
        try:
            for text, digests in registered(read(folder / name) or b"{}").items():
                known[text] = known.get(text, set()) | digests
        except ValueError as error:
            raise LeftAloneError(
                f"{folder / name} is damaged; it records which text files are generated: restore "
                "it, or delete it and those files"
            ) from error
    return known


def write_registry(folder: Path, digests: Mapping[str, Iterable[str]]) -> None:
    """Replace the registry of `folder`, which must be `locked`."""
    replace_content(folder / REGISTRY, registry_of(digests))


def registry_of(digests: Mapping[str, Iterable[str]]) -> bytes:
    """Return the content of a registry; see `features.generated_texts.registered`."""
    joined = {name: " ".join(sorted(each)) for name, each in digests.items()}
    text = json.dumps(joined, ensure_ascii=False, indent=1, sort_keys=True)
    return f"{text}\n".encode(errors="backslashreplace")


def digest(content: bytes) -> str:
    """Return the SHA-256 of a text file as the registry holds it."""
    return hashlib.sha256(content).hexdigest()
