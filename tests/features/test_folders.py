"""Which files of a folder are pictures, and what is passed over."""

import os
from pathlib import Path

import pytest
from PIL import Image

from features import folders, images
from features.errors import UserError
from features.folders import find_pictures, passed_over_note


def make(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def found_in(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in find_pictures([root]).pictures]


def test_pictures_of_every_suffix_are_found_in_the_order_of_their_names(tmp_path: Path) -> None:
    names = ["a.JPG", "b.jfif", "b/c.jpe", "b/d.png", "c.jp2", "d.avif", "e.apng", "f.pjpeg"]
    names += ["g.heic", "h.HEIF", "i.hif", "j.mpo", "k.dib", "l.ppm", "m.tif", "n.webp", ".o.jpg"]
    make(tmp_path, *names, "notes.txt", "photo.jpg.xmp", "._a.JPG", "Thumbs.db")
    assert found_in(tmp_path) == sorted(names, key=lambda name: Path(name).parts)


def test_a_picture_without_suffix_is_found_by_its_content(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "IMG_0001", "JPEG")
    make(tmp_path, "README")
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert found_in(tmp_path) == ["IMG_0001"]


@pytest.mark.parametrize(
    "folder",
    [
        "@eaDir/x.jpg",
        ".thumbnails",
        ".Trash-1000/files",
        "$RECYCLE.BIN/S-1",
        "#recycle",
        "#snapshot",
        "@Recycle",
        ".@__thumb",
        ".picasaoriginals",
        "__MACOSX/album",
        "Lightroom Catalog Previews.lrdata/0",
        "Photos.photoslibrary/resources/derivatives/0",
        "Photos.photoslibrary/database",
        "iPhoto.photolibrary/Thumbnails",
        "System Volume Information",
        "lost+found",
        ".git/annex",
        "Network Trash Folder",
        "Temporary Items",
        "files_trashbin/files",
        "appdata_oc12ab/preview",
        "PRIVATE/M4ROOT/THMBNL",
        "~snapshot/daily",
    ],
)
def test_thumbnails_trash_and_hidden_folders_are_passed_over_and_counted(
    tmp_path: Path, folder: str
) -> None:
    make(tmp_path, f"album/{folder}/a.jpg", "album/b.jpg")
    found = find_pictures([tmp_path])
    assert found.pictures == [tmp_path / "album" / "b.jpg"]
    assert sum(found.passed_over.values()) == 1


def test_a_passed_over_folder_is_read_if_it_is_given(tmp_path: Path) -> None:
    make(tmp_path, ".private/a.jpg", "@eaDir/b.jpg", ".private/.cache/c.jpg")
    given = [tmp_path / ".private", tmp_path / "@eaDir"]
    assert [path.name for path in find_pictures(given).pictures] == ["a.jpg", "b.jpg"]


def test_originals_in_a_photos_library_are_read(tmp_path: Path) -> None:
    make(tmp_path, "P.photoslibrary/originals/0/a.jpg", "Q.aplibrary/Masters/2010/b.jpg")
    assert len(find_pictures([tmp_path]).pictures) == 2


def test_links_are_followed_once(tmp_path: Path) -> None:
    album, elsewhere = tmp_path / "album", tmp_path / "elsewhere"
    make(album, "b/x.jpg", "y.jpg")
    make(elsewhere, "z.jpg", "deep/w.jpg")
    (album / "a").symlink_to(album / "b")  # sorts before the folder itself
    (album / "b" / "up").symlink_to(album)
    (album / "link").symlink_to(elsewhere)
    (album / "second").symlink_to(elsewhere)
    (album / "deep").symlink_to(elsewhere / "deep")
    (elsewhere / "back").symlink_to(album)
    (album / "itself").symlink_to(album / "itself")
    (album / "copy.jpg").symlink_to(album / "y.jpg")
    (album / "gone.jpg").symlink_to(tmp_path / "missing")
    found = find_pictures([album])
    names = sorted(os.path.realpath(path) for path in found.pictures)
    expected = [album / "b/x.jpg", album / "y.jpg", elsewhere / "deep/w.jpg", elsewhere / "z.jpg"]
    assert names == sorted(map(str, expected))
    assert album / "b" / "x.jpg" in found.pictures
    assert found.passed_over == {"link to a file that is missing": 1}


def test_a_picture_given_in_several_ways_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "album/a.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "album")
    monkeypatch.chdir(tmp_path / "album")
    given = ["a.jpg", "./a.jpg", "../album/a.jpg", ".", str(tmp_path / "album"), "../link/a.jpg"]
    assert find_pictures(map(Path, given)).pictures == [Path("a.jpg")]


def test_what_cannot_be_read_is_counted_by_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "a.nef", "b.CR3", "c.dng", "d.svg", "e.psd", "f.mp4", "f.MOV", "g.heic", "h.jxl")
    make(tmp_path, "archive.zip", ".IMG_1.HEIC.icloud", "notes.txt", "captions.csv")
    monkeypatch.setattr(images, "has_heic_reader", lambda: False)
    found = find_pictures([tmp_path])
    assert found.pictures == []
    note = passed_over_note(found.passed_over)
    for part in ("3 x RAW", "1 x SVG", "1 x Photoshop", "2 x video", "1 x HEIC (install pi-heif"):
        assert part in note
    assert "iCloud" in note
    assert sum(found.passed_over.values()) == 11


def test_pictures_with_unusual_names_and_trashed_ones_are_counted(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", "JPEG")
    for name in ("b.jpg_original", "c.insp", ".trashed-1700000000-d.jpg"):
        (tmp_path / name).write_bytes((tmp_path / "a.jpg").read_bytes())
    make(tmp_path, "e.py", "f.GPR")
    found = find_pictures([tmp_path])
    assert found.pictures == [tmp_path / "a.jpg"]
    assert found.passed_over == {
        "picture named *.jpg_original (read if given by name)": 1,
        "picture named *.insp (read if given by name)": 1,
        "picture in the trash": 1,
        "RAW": 1,
    }


@pytest.mark.usefixtures("closed")
def test_a_folder_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    make(tmp_path, "open/a.jpg", "closed/b.jpg")
    found = find_pictures([tmp_path])
    assert [path.name for path in found.pictures] == ["a.jpg"]
    assert [path.name for path, _ in found.closed] == ["closed"]
    with pytest.raises(UserError, match=r"cannot read .*closed: Permission denied; check"):
        list(folders.walk(tmp_path))
