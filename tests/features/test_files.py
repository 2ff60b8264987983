"""Atomic writing: a file is replaced completely or not at all."""

import resource
from pathlib import Path

import pytest

from features.errors import UserError
from features.files import delete_temporaries, replacing, write_atomically


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match=f"cannot write {path}: File too large"):
            write_atomically(path, bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_is_seen_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_that_is_not_utf_8_is_named_where_it_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"J.udcf6rg.+ is not UTF-8; rename that file or folder"):
        write_atomically(tmp_path / "captions.json", '{"root": "/data/J\udcf6rg"}')


def test_only_temporary_files_of_that_file_are_deleted(tmp_path: Path) -> None:
    for name in ("a[1]", ".a[1].lock", ".a[1].12.new", ".a1.12.new", ".b.12.new"):
        (tmp_path / name).touch()
    delete_temporaries(tmp_path / "a[1]")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"a[1]", ".a[1].lock", ".a1.12.new", ".b.12.new"}
