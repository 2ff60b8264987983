"""Where outputs are written: a local folder, or a URL that fsspec can write, such as s3://.

Both have the same operations. A file appears whole: renamed into place on a local disk, uploaded in
one operation to an object store. A claim makes sure that one process at a time makes an output:
on a local disk it is a lock, which ends with its process; elsewhere a small file that the process
renews, and that lapses ten minutes after it stops doing so.
"""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar

from features.errors import UserError, unreadable
from features.files import delete_temporaries, make_folder, replacing, write_atomically
from features.locks import locked
from features.remote_files import file_system, is_url, is_web, reason, shown

CLAIMS = ".claims"
_LEASE_SECONDS, _RENEW_SECONDS = 600.0, 60.0
_WAITS = (1, 3, 9)  # seconds before an operation on a remote place is tried again
_SUFFIXES = (".jsonl", ".json", ".h5")  # of the files of an output
# Codes with which S3 answers if a condition does not hold, also to writes at the same time, and
# other servers that speak S3 if they know no conditions.
_NOT_SO = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409", "NoSuchKey"}
_NOT_IMPLEMENTED = {"NotImplemented", "501"}

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
        """Put a copy of a local file here; the local one may be gone afterwards.

        It replaces another one at once, when it is complete.
        """

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
        claims = self._folder / CLAIMS
        lock, owned = claims / f"{name}.lock", claims / f"{name}.owner"
        make_folder(claims)
        with ExitStack() as held:
            try:
                held.enter_context(locked(lock, f"{name} is claimed"))
            except OSError as error:
                raise UserError(f"cannot write {lock}: {error.strerror}") from error
            except UserError as error:
                if self.read(f"{CLAIMS}/{owned.name}") != owner.encode():
                    raise Busy from error
                yield lambda: None
                return
            write_atomically(owned, owner)
            for suffix in _SUFFIXES:
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
        place, before, joined = f"{CLAIMS}/{name}", time.time(), False
        if not self._write_claim(place, owner, {"mode": "create"}):
            unchanged = self._unchanged(place)
            holder, renewed = self._holder(place)
            joined = holder == owner
            if not joined and before - renewed < _LEASE_SECONDS:
                raise Busy
            if not self._write_claim(place, owner, unchanged):  # another process was faster
                raise Busy

        def check() -> None:
            if self._holder(place)[0] != owner:
                raise Busy

        def renew() -> None:
            while not ended.wait(_RENEW_SECONDS):
                with suppress(Busy, UserError):  # while the network is down, the claim runs on
                    unchanged = self._unchanged(place)
                    check()
                    self._write_claim(place, owner, unchanged)

        check()
        if not joined:
            self._abort_uploads(name, before)
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

    def _write_claim(self, name: str, owner: str, condition: Mapping[str, str]) -> bool:
        """Write a claim under a condition of the file system; return False if it does not hold."""
        url, content = f"{self._url}/{name}", _claim(owner)

        def write() -> bool:
            try:
                self._system.pipe_file(url, content, **condition)
            except FileExistsError:
                return False
            except (TypeError, ValueError, NotImplementedError):
                pass
            except OSError as error:
                if _s3_code(error) in _NOT_SO:
                    return False
                if _s3_code(error) not in _NOT_IMPLEMENTED:
                    raise
            else:
                return True
            # It knows no conditions, so processes may pass each other between these two steps.
            if "mode" in condition and self._system.exists(url):
                return False
            self._system.pipe_file(url, content)
            return True

        return self._tried(write, name)

    def _unchanged(self, name: str) -> dict[str, str]:
        """Return the condition that a file is still as it is now; empty if there is no such one."""
        if not hasattr(self._system, "call_s3"):
            return {}
        about = self._or_none(lambda: self._system.info(f"{self._url}/{name}"), name) or {}
        return {"IfMatch": about["ETag"]} if "ETag" in about else {}

    def _holder(self, name: str) -> tuple[str | None, float]:
        """Return who holds a claim, and when it was renewed, in seconds since 1970.

        Raises:
            Busy: there is no claim any more, so its output may be done.
        """
        content = self.read(name)
        if content is None:
            raise Busy
        try:
            claim = json.loads(content)
            return str(claim["owner"]), float(claim["renewed"])
        except (ValueError, TypeError, KeyError):
            return None, 0.0

    def _abort_uploads(self, name: str, before: float) -> None:
        """Delete the parts of files of this output that a killed process had uploaded to S3.

        S3 keeps the parts of an upload, and charges for them, until it is completed or aborted. A
        failure is ignored: it costs space, and the credentials may not allow to list uploads.
        """
        if not hasattr(self._system, "call_s3"):
            return  # other stores delete them themselves after a week
        bucket, key, _ = self._system.split_path(f"{self._url}/{name}")
        with suppress(Exception):
            prefix = {"Bucket": bucket, "Prefix": f"{key}."}
            found = self._system.call_s3("list_multipart_uploads", **prefix)
            for upload in found.get("Uploads") or []:
                ours = upload["Key"] in {f"{key}{suffix}" for suffix in _SUFFIXES}
                if ours and upload["Initiated"].timestamp() < before:
                    self._system.abort_mpu(bucket, upload["Key"], upload["UploadId"])

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
            except (FileNotFoundError, PermissionError) as error:
                raise UserError(
                    f"cannot reach {shown(self._url)}/{name}: {reason(error)}; check that the "
                    "bucket exists and that the credentials may read and write there"
                ) from error
            except Exception as error:  # each file system has exceptions of its own
                if wait is None:
                    raise UserError(
                        f"cannot reach {shown(self._url)}/{name}: {reason(error)}; what was "
                        "published is kept, and the same command continues from there"
                    ) from error
                time.sleep(wait)
        raise AssertionError


def _claim(owner: str) -> bytes:
    return json.dumps({"owner": owner, "renewed": time.time()}).encode()


def _s3_code(error: OSError) -> str:
    """Return the code with which S3 refused a request, or an empty string."""
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
