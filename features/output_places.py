"""Where outputs are written: a local folder, or a URL that fsspec can write, such as s3://.

Both have the same operations. A file appears whole: renamed into place on a local disk, uploaded in
one operation to an object store. A claim makes sure that one process at a time makes an output:
on a local disk it is a lock, which ends with its process; elsewhere a small file that the process
renews, and that lapses ten minutes after it stops doing so.
"""

import errno
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar

from features.errors import UserError, unreadable
from features.files import delete_temporaries, make_folder, replacing, write_atomically
from features.locks import locked
from features.remote_files import file_system, is_url, is_web, reason, shown

_CLAIMS = ".claims"
_LEASE_SECONDS, _RENEW_SECONDS = 600.0, 60.0
_WAITS = (1, 3, 9)  # seconds before an operation on a remote place is tried again

T = TypeVar("T")


class Busy(Exception):
    """Another process is making this output."""


class OutputPlace(Protocol):
    """A folder for outputs; names are those of files in it.

    Raises:
        UserError: the place cannot be read or written.
    """

    poll_seconds: float
    """How often to look whether another process has finished."""

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file, or None if there is none."""

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, or None if there is none."""

    def put(self, file: Path, name: str) -> None:
        """Move a local file here; it replaces another one at once, when it is complete."""

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, as `put` does."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    def fetch(self, name: str, target: Path) -> None:
        """Copy a file from here to the local file `target`."""

    @contextmanager
    def claim(self, name: str, owner: str) -> Iterator[Callable[[], None]]:
        """Claim an output during the block; the value raises Busy if the claim was lost meanwhile.

        Processes with the same `owner` share claims: one may start what another has not finished.

        Raises:
            Busy: a process with another owner holds the claim.
        """


def output_place(location: str) -> OutputPlace:
    """Return the place at a local path, which is made if it is missing, or at a URL.

    Raises:
        UserError: it cannot be written.
    """
    if is_web(location):
        raise UserError(
            f"--out {shown(location)}: a web server cannot be written to; expected a folder, or a "
            "URL such as s3://bucket/features"
        )
    location = location.removeprefix("file://")
    return _Remote(location) if is_url(location) else _Local(Path(location))


class _Local:
    """A folder on a local or network disk."""

    poll_seconds = 1.0

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self._folder = folder

    def read(self, name: str) -> bytes | None:
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unreadable(self._folder / name, error) from error

    def size(self, name: str) -> int | None:
        try:
            return (self._folder / name).stat().st_size
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unreadable(self._folder / name, error) from error

    def put(self, file: Path, name: str) -> None:
        path = self._folder / name
        try:
            with replacing(path) as temporary:
                shutil.move(file, temporary)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error

    def write(self, name: str, content: bytes) -> None:
        write_atomically(self._folder / name, content)

    def remove(self, name: str) -> None:
        try:
            (self._folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"cannot remove {self._folder / name}: {error.strerror}") from error

    def fetch(self, name: str, target: Path) -> None:
        try:
            shutil.copyfile(self._folder / name, target)
        except OSError as error:
            raise unreadable(self._folder / name, error) from error

    @contextmanager
    def claim(self, name: str, owner: str) -> Iterator[Callable[[], None]]:
        claims = self._folder / _CLAIMS
        lock, owned = claims / f"{name}.lock", claims / f"{name}.owner"
        make_folder(claims)
        with ExitStack() as held:
            try:
                held.enter_context(locked(lock, f"{name} is claimed"))
            except OSError as error:
                raise UserError(f"cannot write {lock}: {error.strerror}") from error
            except UserError as error:
                if self.read(f"{_CLAIMS}/{owned.name}") != owner.encode():
                    raise Busy from error
                yield lambda: None
                return
            write_atomically(owned, owner)
            for suffix in (".jsonl", ".json", ".h5"):
                with suppress(OSError):
                    delete_temporaries(self._folder / f"{name}{suffix}")
            yield lambda: None
            # Nobody needs the lock of a finished output: whoever gets it next finds the output.
            for path in (owned, lock):
                path.unlink(missing_ok=True)


class _Remote:
    """A URL of fsspec."""

    poll_seconds = 10.0

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._system = file_system(url)

    def read(self, name: str) -> bytes | None:
        return self._or_none(lambda: self._system.cat_file(f"{self._url}/{name}"), name)

    def size(self, name: str) -> int | None:
        return self._or_none(lambda: self._system.info(f"{self._url}/{name}")["size"], name)

    def put(self, file: Path, name: str) -> None:
        self._tried(lambda: self._system.put_file(str(file), f"{self._url}/{name}"), name)
        if self.size(name) != file.stat().st_size:
            raise UserError(f"{shown(self._url)}/{name} was uploaded, but has another size there")

    def write(self, name: str, content: bytes) -> None:
        self._tried(lambda: self._system.pipe_file(f"{self._url}/{name}", content), name)

    def remove(self, name: str) -> None:
        self._or_none(lambda: self._system.rm_file(f"{self._url}/{name}"), name)

    def fetch(self, name: str, target: Path) -> None:
        self._tried(lambda: self._system.get_file(f"{self._url}/{name}", str(target)), name)

    @contextmanager
    def claim(self, name: str, owner: str) -> Iterator[Callable[[], None]]:
        place = f"{_CLAIMS}/{name}"
        if not self._created(place, owner):
            holder, renewed = self._holder(place)
            if holder not in (owner, None) and time.time() - renewed < _LEASE_SECONDS:
                raise Busy
            self.write(place, _claim(owner))  # ours, or of a process that was killed

        def check() -> None:
            if self._holder(place)[0] != owner:
                raise Busy

        def renew() -> None:
            while not ended.wait(_RENEW_SECONDS):
                with suppress(Busy, UserError):  # while the network is down, the claim runs on
                    check()
                    self.write(place, _claim(owner))

        check()
        ended = threading.Event()
        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield check
        finally:
            ended.set()
            thread.join()
            with suppress(Busy, UserError):
                check()
                self.remove(place)

    def _created(self, name: str, owner: str) -> bool:
        """Write a claim unless there is one, and return whether it was written."""
        url, content = f"{self._url}/{name}", _claim(owner)

        def create() -> bool:
            try:
                self._system.pipe_file(url, content, mode="create")
            except FileExistsError:
                return False
            except (TypeError, ValueError, NotImplementedError):  # it cannot do so in one operation
                if self._system.exists(url):
                    return False
                self._system.pipe_file(url, content)
            except OSError as error:
                # S3 answers with "precondition failed", or with "conflict" to simultaneous writes.
                if not _is_conflict(error):
                    raise
                return False
            return True

        return self._tried(create, name)

    def _holder(self, name: str) -> tuple[str | None, float]:
        """Return who holds a claim, if anybody, and when it was renewed, in seconds since 1970."""
        try:
            claim = json.loads(self.read(name) or b"null")
            return str(claim["owner"]), float(claim["renewed"])
        except (ValueError, TypeError, KeyError):
            return None, 0.0

    def _or_none(self, operation: Callable[[], T], name: str) -> T | None:
        def found() -> T | None:
            try:
                return operation()
            except FileNotFoundError:
                return None

        return self._tried(found, name)

    def _tried(self, operation: Callable[[], T], name: str) -> T:
        """Return the result of an operation, which is tried again if it fails."""
        for wait in (*_WAITS, None):
            try:
                return operation()
            except Exception as error:  # each file system has exceptions of its own
                if wait is None or isinstance(error, PermissionError):
                    raise UserError(
                        f"cannot reach {shown(self._url)}/{name}: {reason(error)}; what was "
                        "published is kept, and the same command continues from there"
                    ) from error
                time.sleep(wait)
        raise AssertionError


def _claim(owner: str) -> bytes:
    return json.dumps({"owner": owner, "renewed": time.time()}).encode()


def _is_conflict(error: OSError) -> bool:
    return error.errno == errno.EEXIST or any(
        text in str(error).lower() for text in ("precondition", "conditionalrequestconflict")
    )
