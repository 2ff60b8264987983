"""Errors of access are never taken for damage, and a disk that cannot flush loses no write."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from features import parts
from features.errors import AccessError, UserError
from features.files import read_json, sync, write_json
from features.locks import locked
from features.store import FeatureStore
from features.store_writing import only_writer, resume

UNABLE = [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOLCK, errno.EMFILE]
ADVICE = ("damaged", "delete", "--force", "create it", "not a feature store", "not JSON")


def failing(monkeypatch: pytest.MonkeyPatch, function: str, number: int, of: str = "") -> None:
    """Let os.`function` fail with an error number, for paths that contain `of`."""
    real = getattr(os, function)

    def fail(path, *rest, **options):
        if of not in str(path):
            return real(path, *rest, **options)
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(os, function, fail)


def assert_about_access(error: Exception, path: Path) -> None:
    assert isinstance(error, AccessError)
    assert str(path) in str(error)
    assert not [advice for advice in ADVICE if advice in str(error)], str(error)


@pytest.mark.parametrize("number", UNABLE)
def test_a_store_that_cannot_be_opened_or_read_is_not_called_damaged(
    number: int, make: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make([1, 2, 3])
    path = tmp_path / "features.h5"
    store = FeatureStore(path)
    with monkeypatch.context() as patch:
        failing(patch, "pread", number)
        for read in (store.grid, store.pooled, store.check, store.record):
            with pytest.raises(AccessError) as raised:
                read(0 if read in (store.check, store.record) else [0])
            assert_about_access(raised.value, path)
    with monkeypatch.context() as patch:
        failing(patch, "open", number, of="features.h5")
        with pytest.raises(AccessError) as raised:
            FeatureStore(path)
        assert_about_access(raised.value, path)
    assert not FeatureStore(path).check(0)


def test_an_error_number_in_the_message_of_hdf5_is_one_of_access(
    make: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make([1])
    path = tmp_path / "features.h5"
    for message in (
        "Can't synchronously read data (file read failed: time = Mon, errno = 5, error message = "
        "'Input/output error', buf = 0x0)",
        "Unable to open file (unable to lock file, errno = 37, error message = 'No locks')",
    ):

        def fail(self: FeatureStore, file: object, message: str = message) -> None:
            raise OSError(message)

        monkeypatch.setattr(FeatureStore, "_read_layout", fail)
        with pytest.raises(AccessError) as raised:
            FeatureStore(path)
        assert_about_access(raised.value, path)


def test_a_store_that_another_program_holds_is_read_or_named_as_open(
    make: Callable, tmp_path: Path
) -> None:
    make([1, 2, 3])
    path = tmp_path / "features.h5"
    with path.open("r+b") as file:  # as HDF5 itself locks what it writes, and network disks do
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert len(FeatureStore(path)) == 3
    program = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print('open'); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline()
        with pytest.raises(AccessError, match="open for writing in another program") as raised:
            FeatureStore(path)
        other.kill()
    assert_about_access(raised.value, path)
    with pytest.raises(AccessError, match="h5clear --status"):  # a kill leaves the mark there
        FeatureStore(path)


def test_pipes_and_folders_in_place_of_files_do_not_block_and_are_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        for read in (FeatureStore, lambda path: read_json(path, "nothing")):
            with pytest.raises(AccessError, match="not a file but a folder or a device"):
                read(tmp_path / name)


def test_a_short_read_is_continued(
    make: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make([1])
    store = FeatureStore(tmp_path / "features.h5")
    whole, real = store.grid([0]), os.pread
    monkeypatch.setattr(os, "pread", lambda file, count, start: real(file, min(count, 3), start))
    assert (store.grid([0]) == whole).all()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_unfinished_parts_that_cannot_be_read_are_kept(
    number: int, make: Callable, kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make([1, 2, 3], finish=False)
    folder = tmp_path / "features.parts"
    before = sorted(folder.iterdir())

    def fail(self: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", fail)
        with pytest.raises(AccessError) as raised:
            resume(tmp_path / "features.h5", kind)
        assert_about_access(raised.value, folder / "parts.json")
    for function, of in (("listdir", "features.parts"),):
        with monkeypatch.context() as patch:
            failing(patch, function, number, of)
            with pytest.raises(AccessError) as raised:
                parts.scan(folder, kind)
            assert_about_access(raised.value, folder)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fail)
        with pytest.raises(AccessError):
            parts.scan(folder, kind)
    assert sorted(folder.iterdir()) == before
    assert set(parts.scan(folder, kind)) == {1, 2, 3}


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF])
def test_a_disk_that_cannot_flush_loses_no_write(
    number: int, make: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, "fsync", number)
    write_json(tmp_path / "a.json", [1])
    assert read_json(tmp_path / "a.json", "") == [1]
    make([1, 2])
    assert len(FeatureStore(tmp_path / "features.h5")) == 2
    assert not list(tmp_path.glob(".*.new"))


def test_a_folder_that_may_be_written_but_not_listed_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def fail(path, *rest, **options):
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, *rest, **options)

    monkeypatch.setattr(os, "open", fail)
    write_json(tmp_path / "a.json", [1])
    assert json.loads((tmp_path / "a.json").read_text()) == [1]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_disk_that_fails_is_named(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, "fsync", number)
    with pytest.raises(OSError, match=os.strerror(number)):
        sync(tmp_path)
    with pytest.raises(UserError, match=os.strerror(number)):
        write_json(tmp_path / "a.json", [1])


def test_a_disk_without_locks_is_written_with_a_warning(
    make: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fail)
    make([1, 2])
    assert len(FeatureStore(tmp_path / "features.h5")) == 2
    assert f"the disk of {tmp_path} has no file locks" in caplog.text


def test_only_one_process_holds_a_lock(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "lock", "busy"),
        pytest.raises(UserError, match="busy"),
        locked(tmp_path / "lock", "busy"),
    ):
        pass
    with only_writer(tmp_path / "features.h5"):
        pass


@pytest.mark.parametrize("code", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_of_other_programs_encodings_is_read(code: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes('{"a": "é"}'.encode(code))
    assert read_json(tmp_path / "a.json", "") == {"a": "é"}
