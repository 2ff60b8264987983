"""Sidecars among the files of other programs and people: nothing of theirs is lost.

The command line is the real one; only the captioner is replaced, by one with a fixed sentence.
"""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from decoder import caption
from decoder.captioning import caption_stage, sidecar_files, sidecars
from decoder.captioning.writer import Caption, CaptionWriter
from decoder.captioning.xml_elements import MAX_BYTES
from tests.decoder.captioning.xmp_files import DARKTABLE, PROGRAMS, languages, with_properties

OURS = "<photoshop:CaptionWriter>caption-pipeline</photoshop:CaptionWriter>"
VERSION_0_2 = b"""<?xml version='1.0' encoding='UTF-8'?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" xmlns:dc="http://purl.org/dc/elements/1.1/" \
xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" x:xmptk="caption-pipeline">
  <rdf:RDF>
    <rdf:Description rdf:about="">
      <dc:description>
        <rdf:Alt>
          <rdf:li xml:lang="x-default">An old caption.</rdf:li>
        </rdf:Alt>
      </dc:description>
    </rdf:Description>
  </rdf:RDF>
</x:xmpmeta>
"""


class Writer(CaptionWriter):
    """Captions every picture with the same sentence, without loading a model."""

    sentence = "A dog runs."

    def results(self, paths, done=0, quiet=False):
        for path in paths:
            yield path, [Caption(self.sentence, False, None, -1.0)]


@pytest.fixture(autouse=True)
def writer(monkeypatch) -> type[Writer]:
    monkeypatch.setattr(caption_stage, "CaptionWriter", Writer)
    return Writer


def album(folder: Path, **files: bytes) -> Path:
    """Fill a folder with files; "__" in their names stands for a dot."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    return folder


def run(*arguments: object, kind: str = "xmp") -> int:
    return caption.main(["--sidecar", kind, *map(str, arguments)])


def outdated(*files: Path) -> None:
    for file in files:
        os.utime(file, (1, 1))


def texts(content: bytes) -> dict[str, dict[str, str]]:
    """Return the texts of our properties by language, read by another parser than ours."""
    found: dict[str, dict[str, str]] = {}
    for name in ("description", "AltTextAccessibility", "CaptionWriter"):
        for element in ET.fromstring(content).findall(f".//{{*}}{name}"):
            items = element.findall("{*}Alt/{*}li") or [element]
            found[name] = {next(iter(item.attrib.values()), ""): item.text or "" for item in items}
    return found


def common(first: bytes, second: bytes) -> int:
    """Return the number of bytes at the beginning that are the same."""
    different = (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(different, min(len(first), len(second)))


WRITTEN = {
    "description": {"x-default": "A dog runs."},
    "AltTextAccessibility": {"x-default": "A dog runs."},
    "CaptionWriter": {"": "caption-pipeline"},
}


def test_files_of_other_programs_get_a_description_and_keep_every_other_byte(tmp_path, capsys):
    for name, content in PROGRAMS.items():
        album(tmp_path, **{f"{name}__jpg": b"", f"{name}__xmp": content})
    assert run(tmp_path) == 0
    assert f"{len(PROGRAMS)} sidecars written, 0 already there" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.jpg.xmp"))
    for name, before in PROGRAMS.items():
        after = (tmp_path / f"{name}.xmp").read_bytes()
        assert texts(after) == WRITTEN, name
        if name == "digikam":  # its empty description is filled
            before = before.replace(b'"x-default"/>', b'"x-default">A dog runs.</rdf:li>')
        start = common(before, after)
        end = common(before[start:][::-1], after[start:][::-1])
        assert start + end >= len(before) - 4, name  # only the "/" of <rdf:Description/> may go
    assert run(tmp_path) == 0
    assert f"0 sidecars written, {len(PROGRAMS)} already there" in capsys.readouterr().out


def test_a_picture_that_describes_itself_gets_no_other_description(tmp_path, capsys):
    exif = {0x010E: "Grandma in the garden"}, {0x010E: "OLYMPUS DIGITAL CAMERA         "}
    iptc = b"8BIM\x04\x04\0\0\0\0\0\x0c\x1c\x02\x78\0\x07Grandma"
    own = with_properties(languages("dc:description", de="Oma im Garten"))
    generated = with_properties(languages("dc:description", default="A dog.") + OURS)
    album(tmp_path, iptc__jpg=b"")
    inside = {"xmp.jpg": {"xmp": own}, "xmp.webp": {"xmp": own}, "plain.jpg": {}}
    inside |= {"generated.jpg": {"xmp": generated}}
    for name, data in inside.items():
        Image.new("RGB", (8, 8)).save(tmp_path / name, **data)
    for name, texts_of in zip(("exif.jpg", "camera.jpg"), exif, strict=True):
        tags = Image.Exif()
        tags.update(texts_of)
        Image.new("RGB", (8, 8)).save(tmp_path / name, exif=tags)
    plain = (tmp_path / "plain.jpg").read_bytes()
    segment = b"Photoshop 3.0\0" + iptc
    marker = b"\xff\xed" + (len(segment) + 2).to_bytes(2, "big")
    (tmp_path / "iptc.jpg").write_bytes(plain[:2] + marker + segment + plain[2:])
    text = PngInfo()
    text.add_itxt("Description", "Oma im Garten")
    Image.new("RGB", (8, 8)).save(tmp_path / "text.png", pnginfo=text)
    assert run(tmp_path) == 0
    written = {file.name.removesuffix(".xmp") for file in tmp_path.glob("*.xmp")}
    assert written == {"plain.jpg", "camera.jpg", "generated.jpg"}
    assert "5 pictures have a description inside: " in capsys.readouterr().out
    assert run(tmp_path, "--force") == 0
    assert "8 sidecars written" in capsys.readouterr().out


def test_our_description_is_replaced_when_its_picture_is_newer(tmp_path, writer, monkeypatch):
    for name, content in PROGRAMS.items():
        album(tmp_path, **{f"{name}__jpg": b"", f"{name}__xmp": content})
    album(tmp_path, old__jpg=b"", old__jpg__xmp=VERSION_0_2)
    outdated(tmp_path / "old.jpg.xmp")
    assert run(tmp_path) == 0
    first = {file: file.read_bytes() for file in tmp_path.glob("*.xmp")}
    outdated(*first)
    monkeypatch.setattr(writer, "sentence", "A cat & <b>.")
    assert run(tmp_path) == 0
    for file, before in first.items():
        for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
            old, new = (text.encode(encoding) for text in ("A dog runs.", "A cat &amp; &lt;b&gt;."))
            before = before.replace(old, new)
        assert file.read_bytes() == before


@pytest.mark.parametrize(
    "properties",
    [
        languages("dc:description", default="Mein Hund", de_DE="Mein Hund"),
        languages("dc:description", de_DE="Mein Hund"),
        "<dc:description>My dog</dc:description>",
        "<dc:description><rdf:Bag><rdf:li>My dog</rdf:li></rdf:Bag></dc:description>",
        '<dc:description><rdf:Alt><rdf:li xml:lang="x-default"><rdf:Description><rdf:value>My dog'
        "</rdf:value></rdf:Description></rdf:li></rdf:Alt></dc:description>",
        languages("tiff:ImageDescription", default="My dog"),
        # we wrote it, and somebody changed the description or the alternative text since
        languages("dc:description", default="My dog")
        + languages("i:AltTextAccessibility", default="A dog")
        + OURS,
    ],
)
def test_a_description_by_somebody_else_stays(tmp_path, properties, capsys):
    theirs = with_properties(properties)
    album(tmp_path, a__jpg=b"", a__jpg__xmp=theirs)
    outdated(tmp_path / "a.jpg.xmp")
    assert run(tmp_path) == 0
    output = capsys.readouterr()
    assert "0 sidecars written, 1 already there" in output.out
    assert "--force replaces all descriptions" in output.err
    assert (tmp_path / "a.jpg.xmp").read_bytes() == theirs


def test_a_description_as_an_attribute_stays_and_force_makes_it_an_element(tmp_path):
    theirs = with_properties("", "dc:description = 'My > dog' photoshop:CaptionWriter='Jane'")
    album(tmp_path, a__jpg=b"", a__xmp=theirs)
    assert run(tmp_path) == 0
    assert (tmp_path / "a.xmp").read_bytes() == theirs
    assert run(tmp_path, "--force") == 0
    after = (tmp_path / "a.xmp").read_bytes()
    assert b"My > dog" not in after
    assert b'photoshop:CaptionWriter="caption-pipeline"' in after
    assert texts(after)["description"] == {"x-default": "A dog runs."}


def test_force_replaces_the_default_language_only(tmp_path):
    theirs = with_properties(
        languages("dc:description", de_DE="Mein Hund", default="My dog")
        + languages("i:AltTextAccessibility", fr="Mon chien")
        + "<photoshop:CaptionWriter rdf:resource=''/>"
    )
    album(tmp_path, a__jpg=b"", a__xmp=theirs)
    assert run(tmp_path, "--force") == 0
    after = texts((tmp_path / "a.xmp").read_bytes())
    assert after["description"] == {"de-DE": "Mein Hund", "x-default": "A dog runs."}
    assert after["AltTextAccessibility"] == {"x-default": "A dog runs.", "fr": "Mon chien"}
    assert list(after["AltTextAccessibility"]) == ["x-default", "fr"]


def test_an_alternative_text_and_a_caption_writer_of_somebody_else_stay(tmp_path, capsys):
    alt_text = with_properties(languages("i:AltTextAccessibility", default="By Jane"))
    name = with_properties("<photoshop:CaptionWriter>Jane</photoshop:CaptionWriter>")
    album(tmp_path, a__jpg=b"", a__xmp=alt_text, b__jpg=b"", b__xmp=name)
    assert run(tmp_path) == 1
    assert "names 'Jane' as its writer" in capsys.readouterr().err
    assert texts((tmp_path / "a.xmp").read_bytes())["AltTextAccessibility"] == {
        "x-default": "By Jane"
    }
    assert (tmp_path / "b.xmp").read_bytes() == name
    assert run(tmp_path, "--force") == 0
    for file in ("a.xmp", "b.xmp"):
        assert texts((tmp_path / file).read_bytes()) == WRITTEN


BOMB = b"""<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>
<x:xmpmeta xmlns:x="adobe:ns:meta/">&b;</x:xmpmeta>"""


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is not XML"),
        (b"rating=4\n", "it is not XML"),
        (DARKTABLE[:900].encode(), "it is not XML"),
        (b"\xff\xfe<\0x", "expected UTF-16-LE"),
        (b"<html xmlns='http://www.w3.org/1999/xhtml'/>", "without an rdf:RDF"),
        (BOMB, "document type"),
        (BOMB.replace(b'"aaaaaaaaaa"', b'SYSTEM "file:///etc/passwd"'), "document type"),
        (DARKTABLE.replace("UTF-8", "Shift_JIS").encode(), "found the encoding Shift_JIS"),
        (DARKTABLE.encode("latin-1"), "expected UTF-8"),
        (DARKTABLE.replace("xmlns:dc", "xmlns:other").encode(), "unbound prefix"),
        (b"<a>" * 300_000, "in at most 100 others"),
        (b"<a>" + b"<b/>" * 50_000, "at most 50,000 elements"),
        (b" " * (MAX_BYTES + 1), "at most 32 MB"),
    ],
)
def test_a_file_that_is_not_xmp_is_left_alone_and_named(tmp_path, content, reason, capsys):
    album(tmp_path, a__jpg=b"", a__xmp=content, b__jpg=b"")
    for options in ((), ("--force",)):
        assert run(tmp_path, *options) == 1
        output = capsys.readouterr()
        assert output.err.count("\n") == 1
        assert "a.xmp: " in output.err
        assert reason in output.err
        assert (tmp_path / "a.xmp").read_bytes() == content
        assert (tmp_path / "b.jpg.xmp").exists()


def test_the_naming_convention_that_is_there_is_taken(tmp_path):
    xmp = with_properties("")
    album(tmp_path, full__jpg=b"", full__jpg__xmp=xmp, both__jpg=b"", both__jpg__xmp=xmp)
    album(tmp_path, both__xmp=xmp, short__jpg=b"", short__XMP=xmp, short__txt=b"", new__jpg=b"")
    decomposed = {"cafe\u0301__jpg": b""}
    album(tmp_path, café__xmp=xmp, **decomposed)
    names = {file.name for file in tmp_path.iterdir()}
    assert run(tmp_path) == 0
    assert {file.name for file in tmp_path.iterdir()} == names | {"new.jpg.xmp"}
    for name in ("full.jpg.xmp", "both.jpg.xmp", "short.XMP", "new.jpg.xmp", "caf\u00e9.xmp"):
        assert texts((tmp_path / name).read_bytes()) == WRITTEN
    assert (tmp_path / "both.xmp").read_bytes() == xmp


def test_a_description_in_either_of_two_files_is_respected(tmp_path):
    xmp, theirs = with_properties(""), with_properties(languages("dc:description", default="Mine"))
    album(tmp_path, a__jpg=b"", a__jpg__xmp=xmp, a__xmp=theirs)
    assert run(tmp_path) == 0
    assert (tmp_path / "a.jpg.xmp").read_bytes() == xmp


def test_an_xmp_file_that_may_be_about_another_picture_is_left_alone(tmp_path, capsys):
    xmp = with_properties("")
    album(tmp_path, raw__jpg=b"", raw__CR2=b"", raw__xmp=xmp)
    album(tmp_path, two__jpg=b"", two__png=b"", two__xmp=xmp)
    # Adobe's programs say which picture their file is about
    adobe = with_properties("", 'photoshop:SidecarForExtension="NEF"')
    album(tmp_path, nef__jpg=b"", nef__NEF=b"", nef__xmp=adobe)
    adobe_jpg = with_properties("", 'photoshop:SidecarForExtension="JPG"')
    album(tmp_path, jpg__jpg=b"", jpg__png=b"", jpg__xmp=adobe_jpg)
    assert run(tmp_path) == 1
    error = capsys.readouterr().err
    assert "raw.jpg is left alone: raw.xmp may be about raw.CR2" in error
    assert "two.jpg is left alone" in error
    assert "two.png is left alone" in error
    assert error.count("error: ") == 3
    assert (tmp_path / "raw.xmp").read_bytes() == (tmp_path / "two.xmp").read_bytes() == xmp
    assert (tmp_path / "nef.xmp").read_bytes() == adobe
    new = {"nef.jpg.xmp", "jpg.png.xmp"}
    assert {file.name for file in tmp_path.glob("*.*.xmp")} == new
    assert texts((tmp_path / "jpg.xmp").read_bytes()) == WRITTEN


def test_protected_files_are_left_alone_and_links_and_permissions_stay(tmp_path, capsys):
    xmp = with_properties("")
    folder = album(tmp_path / "album", a__jpg=b"", b__jpg=b"", c__jpg=b"", d__jpg=b"", e__jpg=b"")
    album(folder, a__xmp=xmp, c__xmp=xmp)
    (folder / "a.xmp").chmod(0o400)
    album(tmp_path / "store", b__xmp=xmp)
    (folder / "b.xmp").symlink_to("../store/b.xmp")
    (folder / "c.xmp").chmod(0o640)
    (folder / "d.xmp").symlink_to("nowhere")
    (folder / "e.jpg.xmp").mkdir()
    assert run(folder) == 1
    error = capsys.readouterr().err
    assert "a.xmp is left alone: it is read-only" in error
    assert "d.xmp: it is a link to a file that is not there" in error
    assert "e.jpg.xmp: expected a file" in error
    assert (folder / "a.xmp").read_bytes() == xmp
    assert (folder / "b.xmp").is_symlink()
    assert texts((tmp_path / "store" / "b.xmp").read_bytes()) == WRITTEN
    assert (folder / "c.xmp").stat().st_mode & 0o777 == 0o640


def registry(folder: Path) -> dict[str, str]:
    return json.loads((folder / ".captions-generated.json").read_text())


def test_generated_text_files_are_registered_and_no_others(tmp_path, writer, monkeypatch):
    folder = album(tmp_path / "album", a__jpg=b"", b__jpg=b"", b__txt=b"by a person")
    assert run(folder, kind="stem-txt") == 0
    assert (folder / "a.txt").read_text() == "A dog runs.\n"
    assert (folder / "b.txt").read_text() == "by a person"
    digest = hashlib.sha256(b"A dog runs.\n").hexdigest()
    assert registry(folder) == {"a.txt": digest}
    assert run(folder, kind="txt") == 0
    assert registry(folder) == dict.fromkeys(("a.txt", "a.jpg.txt", "b.jpg.txt"), digest)
    # a text of ours is replaced when its picture is newer, unless somebody changed it
    (folder / "a.jpg.txt").write_text("changed")
    outdated(folder / "a.jpg.txt", folder / "b.jpg.txt")
    monkeypatch.setattr(writer, "sentence", "A cat.")
    assert run(folder, kind="txt") == 0
    assert (folder / "a.jpg.txt").read_text() == "changed"
    assert (folder / "b.jpg.txt").read_text() == "A cat.\n"
    assert registry(folder)["b.jpg.txt"] == hashlib.sha256(b"A cat.\n").hexdigest()


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no such names")
def test_a_name_that_is_not_utf_8_is_registered(tmp_path):
    name = os.fsdecode(b"\xff.jpg")
    album(tmp_path, a__jpg=b"", **{name: b""})
    for _ in range(2):
        assert run(tmp_path, kind="txt") == 0
    assert registry(tmp_path).keys() == {"a.jpg.txt", f"{name}.txt"}


def test_one_text_file_is_not_written_for_two_pictures(tmp_path, capsys):
    album(tmp_path, a__jpg=b"", a__png=b"", b__jpg=b"", b__CR2=b"")
    assert run(tmp_path, "--force", kind="stem-txt") == 1
    assert "a.txt would be the caption of a.png too" in capsys.readouterr().err
    assert [file.name for file in tmp_path.glob("*.txt")] == ["b.txt"]


def test_a_damaged_registry_is_kept_and_named(tmp_path, capsys):
    album(tmp_path, a__jpg=b"")
    (tmp_path / ".captions-generated.json").write_bytes(b"<<<<<<< HEAD")
    assert run(tmp_path, kind="txt") == 1
    assert ".captions-generated.json is damaged" in capsys.readouterr().err
    assert not (tmp_path / "a.jpg.txt").exists()


def test_a_text_that_cannot_be_replaced_stays_registered(tmp_path, writer, monkeypatch, capsys):
    album(tmp_path, a__jpg=b"", b__jpg=b"")
    assert run(tmp_path, kind="txt") == 0
    before = registry(tmp_path)
    replace = sidecar_files.replace_content

    def refuse(path: Path, content: bytes) -> None:
        if path.name == "a.jpg.txt":
            raise PermissionError(errno.EPERM, "Operation not permitted")
        replace(path, content)

    monkeypatch.setattr(sidecars, "replace_content", refuse)
    monkeypatch.setattr(writer, "sentence", "A cat.")
    assert run(tmp_path, "--force", kind="txt") == 1
    assert "a.jpg.txt is left alone: Operation not permitted" in capsys.readouterr().err
    assert registry(tmp_path)["a.jpg.txt"] == before["a.jpg.txt"]
    assert registry(tmp_path)["b.jpg.txt"] != before["b.jpg.txt"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_texts_not_yet_replaced_stay_registered_when_writing_ends(
    tmp_path, writer, monkeypatch, capsys, error
):
    album(tmp_path, a__jpg=b"", b__jpg=b"")
    assert run(tmp_path, kind="txt") == 0
    outdated(tmp_path / "a.jpg.txt", tmp_path / "b.jpg.txt")
    replace = sidecar_files.replace_content

    def fail(path: Path, content: bytes) -> None:
        if path.name == "b.jpg.txt":
            raise error
        replace(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(sidecars, "replace_content", fail)
        patch.setattr(writer, "sentence", "A cat.")
        assert run(tmp_path, kind="txt") in (2, 130)
    texts = [(tmp_path / name).read_text() for name in ("a.jpg.txt", "b.jpg.txt")]
    assert texts == ["A cat.\n", "A dog runs.\n"]
    known = sidecar_files.read_registry(tmp_path)
    for name, text in zip(("a.jpg.txt", "b.jpg.txt"), texts, strict=True):
        assert hashlib.sha256(text.encode()).hexdigest() in known[name]
    outdated(tmp_path / "b.jpg.txt")
    monkeypatch.setattr(writer, "sentence", "A cow.")
    assert run(tmp_path, kind="txt") == 0
    assert (tmp_path / "b.jpg.txt").read_text() == "A cow.\n"
    assert registry(tmp_path)["b.jpg.txt"] == hashlib.sha256(b"A cow.\n").hexdigest()


@pytest.mark.parametrize("kind", ["xmp", "txt"])
def test_a_full_disk_stops_the_command_and_loses_nothing(tmp_path, kind, monkeypatch, capsys):
    xmp = with_properties("")
    album(tmp_path, a__jpg=b"", a__xmp=xmp)

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sidecars, "replace_content", full)
    monkeypatch.setattr(sidecar_files, "replace_content", full)
    assert run(tmp_path, kind=kind) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jpg", "a.xmp"]
    assert (tmp_path / "a.xmp").read_bytes() == xmp


def test_captions_computed_before_an_error_are_written(tmp_path, writer, monkeypatch):
    album(tmp_path, a__jpg=b"", b__jpg=b"")
    captions = writer.captions

    def interrupted(self, paths, done=0):
        yield from captions(self, paths[:1])
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "captions", interrupted)
    run(tmp_path)
    assert [file.name for file in tmp_path.glob("*.xmp")] == ["a.jpg.xmp"]


def test_a_file_that_changes_while_its_picture_is_captioned_keeps_the_change(
    tmp_path, writer, monkeypatch
):
    album(tmp_path, a__jpg=b"", b__jpg=b"", a__xmp=with_properties(""))
    theirs = with_properties(languages("dc:description", default="By Jane"))
    captions = writer.captions

    def meanwhile(self, paths, done=0):
        (tmp_path / "a.xmp").write_bytes(theirs)
        (tmp_path / "b.jpg.xmp").write_bytes(PROGRAMS["darktable"])
        yield from captions(self, paths)

    monkeypatch.setattr(writer, "captions", meanwhile)
    assert run(tmp_path) == 0
    assert (tmp_path / "a.xmp").read_bytes() == theirs
    assert b'xmp:Rating="4"' in (tmp_path / "b.jpg.xmp").read_bytes()


def test_two_processes_at_once_register_all_their_text_files(tmp_path):
    code = (
        "import sys; from pathlib import Path; from decoder.captioning.sidecar_files import *\n"
        "folder = Path(sys.argv[1])\n"
        "for i in range(40):\n"
        "    with locked(folder):\n"
        "        write_registry(folder, read_registry(folder) | {f'{sys.argv[2]}{i}': 'x'})\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen([*command, name]) for name in "ab"]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert registry(tmp_path).keys() == {f"{name}{i}" for name in "ab" for i in range(40)}


def test_many_brush_strokes_of_lightroom_are_passed_over(tmp_path):
    strokes = b"<rdf:li>d 0.403627 0.524163</rdf:li>" * 60_000
    xmp = PROGRAMS["lightroom"].replace(b"<rdf:li>0, 0</rdf:li>", strokes)
    album(tmp_path, a__jpg=b"", a__xmp=xmp)
    assert run(tmp_path) == 0
    after = (tmp_path / "a.xmp").read_bytes()
    assert texts(after) == WRITTEN
    assert strokes in after


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
def test_exiftool_reads_what_we_write_and_what_was_there(tmp_path):
    def read(folder: Path) -> dict[str, dict[str, object]]:
        command = ["exiftool", "-json", "-G1", "-XMP:all", "-Warning", str(folder)]
        output = subprocess.run(command, capture_output=True).stdout  # it fails for empty pictures
        return {Path(found.pop("SourceFile")).name: found for found in json.loads(output)}

    for name, content in PROGRAMS.items():
        if name != "default-namespace":  # exiftool cannot read it
            album(tmp_path, **{f"{name}__jpg": b"", f"{name}__xmp": content})
    album(tmp_path, new__jpg=b"")
    before = read(tmp_path)
    assert run(tmp_path) == 0
    after = read(tmp_path)
    assert after.keys() == before.keys() | {"new.jpg.xmp"}
    for name, found in after.items():
        if not name.endswith(".xmp"):
            continue
        assert found.pop("XMP-dc:Description") == "A dog runs."
        assert found.pop("XMP-iptcCore:AltTextAccessibility") == "A dog runs."
        assert found.pop("XMP-photoshop:CaptionWriter") == "caption-pipeline"
        rest = before.get(name, {"XMP-x:XMPToolkit": "caption-pipeline"})
        rest.pop("XMP-dc:Description", None)
        assert found == rest
