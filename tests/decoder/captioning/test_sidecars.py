"""Captions beside their pictures, through the command line: .txt, or .xmp for photo software."""

import os
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from decoder import caption
from tests.decoder.captioning.xmp_files import languages, with_properties

LI = ".//{http://purl.org/dc/elements/1.1/}description/{*}Alt/{*}li"
LANG = "{http://www.w3.org/XML/1998/namespace}lang"


@pytest.fixture
def album(captioner: Path, tmp_path: Path) -> Path:
    """A folder with a picture, another of the same stem, and one in a subfolder."""
    first, second, third = sorted((captioner / "images").iterdir())[:3]
    folder = tmp_path / "album"
    (folder / "inner").mkdir(parents=True)
    shutil.copy(first, folder / "one.png")
    shutil.copy(second, folder / "one.webp.png")
    shutil.copy(third, folder / "inner" / "é.png")
    return folder


def write(captioner: Path, kind: str, *options: str) -> int:
    run = str(captioner / "runs" / "captioner")
    return caption.main(["--run", run, "--sidecar", kind, *options])


def printed(captioner: Path, album: Path, capsys) -> dict[str, str]:
    capsys.readouterr()
    assert caption.main(["--run", str(captioner / "runs" / "captioner"), str(album)]) == 0
    return dict(line.split("\t") for line in capsys.readouterr().out.splitlines())


def test_each_picture_gets_a_text_file_with_its_caption(captioner, album, capsys):
    expected = printed(captioner, album, capsys)
    assert write(captioner, "txt", str(album)) == 0
    assert "3 sidecars written, 0 already there" in capsys.readouterr().out
    found = {str(f)[:-4]: f.read_text().rstrip("\n") for f in album.rglob("*.txt")}
    assert found == expected


def test_damaged_heic_pictures_are_reported_and_macos_metadata_is_ignored(captioner, album, capsys):
    (album / "._one.png").write_bytes(b"\0\5\x16\7")
    assert write(captioner, "txt", str(album)) == 0
    (album / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    assert write(captioner, "txt", str(album)) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert "IMG_1.HEIC: a damaged or truncated HEIC file" in error


def test_the_description_in_an_xmp_file_is_the_caption(captioner, album, capsys):
    expected = printed(captioner, album, capsys)
    assert write(captioner, "xmp", str(album)) == 0
    for picture, sentence in expected.items():
        (item,) = ET.parse(f"{picture}.xmp").getroot().findall(LI)
        assert (item.text, item.get(LANG)) == (sentence, "x-default")


def test_existing_sidecars_are_left_alone_unless_forced(captioner, album, capsys):
    mine = album / "one.png.txt"
    mine.write_text("my own words")
    os.utime(mine, (1, 1))
    assert write(captioner, "txt", str(album)) == 0
    output = capsys.readouterr()
    assert "2 sidecars written, 1 already there" in output.out
    assert "older than their pictures and may not be ours" in output.err
    assert mine.read_text() == "my own words"
    assert write(captioner, "txt", str(album), "--force") == 0
    assert mine.read_text() != "my own words"


def test_an_xmp_file_of_ours_is_replaced_when_its_picture_changed_but_not_others(
    captioner, album, capsys
):
    assert write(captioner, "xmp", str(album)) == 0
    ours, other = album / "one.png.xmp", album / "inner" / "é.png.xmp"
    theirs = with_properties(languages("dc:description", default="My own words"))
    other.write_bytes(theirs)
    shutil.copy(album / "one.webp.png", album / "one.png")
    for file in (ours, other):
        os.utime(file, (1, 1))
    capsys.readouterr()
    assert write(captioner, "xmp", str(album)) == 0
    assert "1 sidecars written, 2 already there" in capsys.readouterr().out
    assert ours.stat().st_mtime > 1
    assert other.read_bytes() == theirs
    # It holds the caption of the new picture.
    twin = ET.parse(album / "one.webp.png.xmp").getroot().findall(LI)[0].text
    assert ET.fromstring(ours.read_bytes()).findall(LI)[0].text == twin


def test_a_broken_picture_is_reported_and_the_others_get_sidecars(captioner, album, capsys):
    (album / "broken.png").write_bytes(b"\x89PNG")
    assert write(captioner, "txt", str(album)) == 1
    output = capsys.readouterr()
    assert "broken.png" in output.err
    assert "3 sidecars written" in output.out
    assert not (album / "broken.png.txt").exists()


def test_an_unsure_caption_in_a_sidecar_starts_with_perhaps(album):
    """With the packaged captioner, which has a confidence estimate, always below 1."""
    picture = album / "one.png"
    assert caption.main(["--sidecar", "txt", "--unsure", "1", str(picture)]) == 0
    assert (album / "one.png.txt").read_text().startswith("Perhaps: ")
    assert caption.main(["--sidecar", "txt", "--unsure", "0", "--force", str(picture)]) == 0
    assert not (album / "one.png.txt").read_text().startswith("Perhaps: ")
