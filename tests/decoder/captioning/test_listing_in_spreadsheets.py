"""Tables of captions that a person opened in a spreadsheet program, corrected and saved.

The command line is the real one; only the captioner is replaced, by one with a fixed sentence.
"""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from decoder import caption
from decoder.captioning import caption_stage
from decoder.captioning.writer import Caption, CaptionWriter
from features.content import check_content
from features.images import PictureError, read_picture
from tests.pictures import moon

Rows = list[dict[str, str]]


class Writer(CaptionWriter):
    """Captions every picture that shows something with the same sentence."""

    def results(self, paths, done=0, quiet=False):
        for path in paths:
            try:
                check_content(read_picture(path))
            except PictureError as error:
                self.unreadable.append((path, error))
                yield path, error
                continue
            self.written += 1
            yield path, [Caption("A dog runs.", False, None, -1.0)]


@pytest.fixture(autouse=True)
def writer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_stage, "CaptionWriter", Writer)


@pytest.fixture
def album(tmp_path: Path) -> Path:
    folder = tmp_path / "album"
    folder.mkdir()
    for name in ("a.png", "b, c.png"):
        moon((64, 48)).save(folder / name)
    return folder


def rows_of(out: Path) -> Rows:
    with out.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def saved(rows: Rows, separator: str = ",", line_end: str = "\r\n") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], delimiter=separator, lineterminator=line_end)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def rounded(rows: Rows, decimals: int, point: str = ".") -> Rows:
    return [
        row | {"modified": f"{int(row['modified']):.{decimals}E}".replace(".", point)}
        for row in rows
    ]


@pytest.mark.parametrize(
    "save",
    [
        lambda rows: saved(rows).encode("utf-8-sig"),
        lambda rows: saved(rounded(rows, 5, ","), ";").encode("cp1252"),  # a German Excel
        lambda rows: saved(rounded(rows, 5), "\t").encode("utf-16"),  # "Unicode text"
        lambda rows: saved(rounded(rows, 14), line_end="\n").encode(),  # LibreOffice
        lambda rows: saved(rows, line_end="\r").encode(),
        lambda rows: saved([dict(reversed(row.items())) for row in rows]).encode() + b"\r\n",
        lambda rows: saved([row | {"rating": "5"} for row in rows], line_end="\n").encode(),
    ],
)
def test_a_corrected_table_is_continued(album: Path, save: Callable, capsys) -> None:
    out = album.parent / "captions.csv"
    command = [str(album), "--out", str(out)]
    assert caption.main(command) == 0
    out.write_bytes(save([row | {"caption": "My dog"} for row in rows_of(out)]))
    moon((64, 48)).save(album / "new.png")
    capsys.readouterr()
    assert caption.main(command) == 0
    assert "1 caption added" in capsys.readouterr().out
    assert [row["caption"] for row in rows_of(out)] == ["My dog", "My dog", "A dog runs."]


def test_a_column_of_a_person_stays_when_a_picture_changes(album: Path) -> None:
    out = album.parent / "captions.csv"
    command = [str(album), "--out", str(out)]
    assert caption.main(command) == 0
    out.write_text(
        saved([row | {"My rating": str(i), "": ""} for i, row in enumerate(rows_of(out))])
    )
    moon((99, 99)).save(album / "b, c.png")
    for _ in range(2):
        assert caption.main(command) == 0
        assert [row["My rating"] for row in rows_of(out)] == ["0", "1"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'[{"image_id": 1, "caption": "A dog"}]'),
        ("a.csv", b"my notes"),
        ("a.csv", b"path;caption\r\na.png;My dog\r\n"),
    ],
)
def test_a_file_of_somebody_else_is_never_emptied(album: Path, name, content, capsys) -> None:
    out = album.parent / name
    out.write_bytes(content)
    assert caption.main([str(album), "--out", str(out)]) == 2
    assert "line 1: expected a caption written by decoder.caption" in capsys.readouterr().err
    assert out.read_bytes() == content


def test_a_picture_that_shows_nothing_is_no_error_in_later_runs_either(album: Path, capsys) -> None:
    Image.new("RGB", (99, 99), "white").save(album / "white.png")
    for _ in range(2):
        assert caption.main([str(album), "--out", str(album.parent / "captions.csv")]) == 0
        assert "no caption for" in capsys.readouterr().err


def test_a_path_copied_from_a_file_manager_is_read(album: Path, capsys) -> None:
    assert caption.main([(album / "b, c.png").as_uri()]) == 0
    assert "b, c.png\tA dog runs." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["", "--sidecar", "txt"], "expected a value, found an empty argument"),
        (["album", "--out", ""], "expected --out FILE, found an empty argument"),
        (["album", "--sidecar", "txt", "--sidecar=xmp"], "expected --sidecar once"),
        (["album", "--out", "1.csv", "--out", "2.csv"], "expected --out once"),
    ],
)
def test_arguments_that_would_do_something_else_are_refused(
    album: Path, arguments, message, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(album.parent)
    assert caption.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert list(album.parent.rglob("*.txt")) == []
